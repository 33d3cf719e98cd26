"""Multi-resolution STFT loss: magnitudes must agree at several trade-offs of time and frequency.

Axes: B batch, T samples, K frequency bins, N frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Under the square root and the logarithm: a magnitude of 1e-4, which bounds the gradient of bins that are silent.
_POWER_FLOOR = 1e-8


class MultiResolutionSTFT(nn.Module):
    """Mean over resolutions of spectral convergence plus L1 distance of log magnitudes.

    Reference:
        Yamamoto et al., "Parallel WaveGAN", 2020, eq. 4 to 6.
    """

    def __init__(self, *, window_samples: Sequence[int] = (320, 640, 1280)):
        """
        Args:
            window_samples: Hann windows, each with hop a quarter of it and an FFT of the next power of two.

        Raises:
            ValueError: no window, or one that a hop of a quarter does not divide.
        """
        super().__init__()
        self.window_samples = tuple(window_samples)
        bad = [window for window in self.window_samples if window < 4 or window % 4]
        if not self.window_samples or bad:
            raise ValueError(
                f"window_samples={list(self.window_samples)}: give at least one, each a positive multiple of 4"
            )
        for window in self.window_samples:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def forward(self, *, estimate: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """
        Shape:
            estimate, target (..., T), same shape; lengths (B,) samples for (B, ...) -> (...,), at least 0
        """
        leading, num_samples = target.shape[:-1], target.shape[-1]
        estimate, target = estimate.reshape(-1, num_samples), target.reshape(-1, num_samples)
        if lengths is None:
            lengths = torch.full(leading[:1], num_samples, device=target.device)
        lengths = lengths.to(target.device).reshape(-1, *[1] * (len(leading) - 1)).expand(leading).reshape(-1)
        valid = torch.arange(num_samples, device=target.device) < lengths.unsqueeze(-1)
        estimate, target = estimate * valid, target * valid
        total = sum(self._distance(estimate, target, lengths, window) for window in self.window_samples)
        return (total / len(self.window_samples)).reshape(leading)

    def _distance(self, estimate: Tensor, target: Tensor, lengths: Tensor, window: int) -> Tensor:
        estimate, target = self._magnitude(estimate, window), self._magnitude(target, window)  # (B, K, N)
        # Only the frames that the valid part would have by itself.
        centres = torch.arange(target.shape[2], device=target.device) * (window // 4)
        frames = centres <= lengths.unsqueeze(-1)  # (B, N)
        error = ((target - estimate).square().sum(1) * frames).sum(1).clamp(min=_POWER_FLOOR).sqrt()
        convergence = error / (target.square().sum(1) * frames).sum(1).sqrt()  # eq. 5
        distance = (target.log() - estimate.log()).abs().mean(1) * frames  # eq. 6
        return convergence + distance.sum(1) / frames.sum(1)

    def _magnitude(self, signal: Tensor, window: int) -> Tensor:
        spectrum = torch.stft(
            signal,
            n_fft=1 << (window - 1).bit_length(),
            hop_length=window // 4,
            win_length=window,
            window=getattr(self, f"window_{window}"),
            pad_mode="constant",
            return_complex=True,
        )
        return (spectrum.real.square() + spectrum.imag.square()).clamp(min=_POWER_FLOOR).sqrt()
