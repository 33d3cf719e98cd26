"""Learned encoder and decoder: the waveform as weights of a trained basis, and back.

They take the place of the STFT in the TasNet family. Windows overlap by half, like the frames of
`blocks.stft`: frame n is centred at sample n * hop, and every sample lies under exactly two windows.

Axes: B batch, T samples, N frames, E basis signals.

Reference: Luo and Mesgarani, "Conv-TasNet", 2019, convolutional encoder-decoder, with a linear encoder.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def half_of_window(window: int) -> int:
    """Hop of windows that overlap by half, in samples.

    Raises:
        ValueError: the window has no half.
    """
    if window < 2 or window % 2:
        raise ValueError(f"learned filterbank: window={window} must be an even number of samples, 2 or more")
    return window // 2


class LearnedEncoder(nn.Module):
    """Inner products of overlapping windows with the analysis basis.

    Runs in float32 whatever autocast says: its weights are as precise as the waveform they stand for.

    Args:
        basis: E.
        window: length of a window in samples, even.
    """

    def __init__(self, basis: int, window: int) -> None:
        super().__init__()
        self.hop = half_of_window(window)
        self.conv = nn.Conv1d(1, basis, window, stride=self.hop, bias=False)

    def forward(self, signal: Tensor) -> Tensor:
        """Shape: (B, T) -> (B, E, N = ceil(T / hop) + 1), float32."""
        missing = -signal.shape[-1] % self.hop
        with torch.autocast(signal.device.type, enabled=False):
            padded = functional.pad(signal.float(), (self.hop, self.hop + missing))
            return self.conv(padded[:, None])


class LearnedDecoder(nn.Module):
    """Weighted sum of the synthesis basis in every frame, then overlap-add, in float32.

    Args:
        basis: E.
        window: length of a window in samples, even.
    """

    def __init__(self, basis: int, window: int) -> None:
        super().__init__()
        self.hop = half_of_window(window)
        self.conv = nn.ConvTranspose1d(basis, 1, window, stride=self.hop, bias=False)

    def forward(self, weights: Tensor, num_samples: int) -> Tensor:
        """Shape: (B, S, E, N) -> (B, S, num_samples), float32."""
        with torch.autocast(weights.device.type, enabled=False):
            padded = self.conv(weights.float().flatten(0, 1))[:, 0]
        return padded[:, self.hop : self.hop + num_samples].unflatten(0, weights.shape[:2])
