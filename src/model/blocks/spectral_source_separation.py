"""Spectral source separation (S3): a complex mask on the encoder's output, and the decoder to a spectrum.

Axes: B batch, C channels, N STFT frames, Q frequency bins.

Reference: Pegg, Li and Hu 2023, "RTFS-Net", spectral source separation.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SpectralSourceSeparation(nn.Module):
    """Complex mask; one half of the channels is read as real parts, the other half as imaginary parts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.PReLU(channels), nn.Conv2d(channels, channels, 1, bias=False), nn.ReLU(inplace=True)
        )

    def forward(self, features: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: (B, C, N, Q), (B, C, N, Q) -> real and imaginary channels (B, C / 2, N, Q) each."""
        mask_real, mask_imaginary = self.mask(features).chunk(2, dim=1)
        real, imaginary = encoded.chunk(2, dim=1)
        return (
            (mask_real * real).addcmul_(mask_imaginary, imaginary, value=-1),
            (mask_real * imaginary).addcmul_(mask_imaginary, real),
        )


class SpectrumDecoder(nn.Module):
    """Transposed 3x3 convolution from C channels to the real and imaginary part of a spectrum.

    Written as a matrix product and an overlap-add of its nine shifts: with two output channels the library's
    convolution spends most of its time on rearranging the input.
    """

    KERNEL = 3

    def __init__(self, channels: int) -> None:
        super().__init__()
        rows = 2 * self.KERNEL**2
        bound = 1 / math.sqrt(self.KERNEL**2 * channels)
        self.weight = nn.Parameter(torch.empty(rows, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Shape: two of (B, C / 2, N, Q) -> (B, 2, N, Q)."""
        size = real.shape[2:]
        halves = zip(self.weight.chunk(2, dim=1), (real, imaginary))
        shifts = sum(torch.matmul(weight, half.flatten(2)) for weight, half in halves)
        return functional.fold(shifts, size, self.KERNEL, padding=self.KERNEL // 2) + self.bias
