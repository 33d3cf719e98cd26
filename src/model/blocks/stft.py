"""Short-time Fourier transform and its inverse for signals of any length.

Axes: B batch, T samples, N STFT frames, Q frequency bins.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import InverseSpectrogram, Spectrogram


def sqrt_hann(length: int) -> Tensor:
    """Square root of the periodic Hann window: analysis times synthesis window sums to a constant."""
    return torch.hann_window(length).sqrt()


class Stft(nn.Module):
    """Analysis and synthesis with a square-root Hann window, frames centred on multiples of the hop.

    Args:
        window: window length in samples, also the FFT size.
        hop: distance of two frames in samples, at most half a window.
    """

    def __init__(self, window: int = 512, hop: int = 256) -> None:
        super().__init__()
        if not 0 < hop <= window // 2:
            raise ValueError(f"stft: hop={hop} must be between 1 and half the window ({window // 2} samples)")
        self.window, self.hop = window, hop
        self.num_bins = window // 2 + 1
        options = {"n_fft": window, "win_length": window, "hop_length": hop, "window_fn": sqrt_hann}
        self.analysis = Spectrogram(power=None, pad_mode="constant", **options)
        self.synthesis = InverseSpectrogram(**options)

    def padded_length(self, num_samples: int) -> int:
        """Samples after padding: a multiple of the hop with one more hop, so that the last sample lies
        under two windows and the synthesis never divides by a vanishing window sum."""
        return (-(-num_samples // self.hop) + 1) * self.hop

    def forward(self, signal: Tensor) -> Tensor:
        """Shape: (B, T) -> complex (B, Q, N)."""
        missing = self.padded_length(signal.shape[-1]) - signal.shape[-1]
        return self.analysis(functional.pad(signal, (0, missing)))

    def inverse(self, spectrum: Tensor, num_samples: int) -> Tensor:
        """Shape: complex (..., Q, N) -> (..., num_samples)."""
        return self.synthesis(spectrum, self.padded_length(num_samples))[..., :num_samples]
