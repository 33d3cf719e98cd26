"""Dual path over a time-frequency map: a recurrence along frequency, then one along time.

Axes: B batch, C channels, N STFT frames, Q frequency bins, L steps of a path, K window, H hidden of a direction.

Reference: Pegg, Li and Hu 2023, "RTFS-Net", dual-path architecture.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.sru import DIRECTIONS, Sru, stepwise_product, windows


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of every position."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, steps: Tensor) -> Tensor:
        """Shape: (L, C, B) -> the same."""
        centred = steps - steps.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return torch.addcmul(self.bias, centred * (variance + self.eps).rsqrt(), self.weight)


class Path(nn.Module):
    """Normalise, unfold windows of K steps, simple recurrent units, transposed convolution back, residual.

    The transposed convolution of stride 1 is written as what it is: windows of the padded steps times one matrix.
    """

    def __init__(self, channels: int, hidden: int, layers: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm = ChannelNorm(channels)
        self.rnn = Sru(window * channels, hidden, layers)
        fan_in = window * DIRECTIONS * hidden
        self.fold = nn.Parameter(torch.randn(channels, fan_in) / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, steps: Tensor) -> Tensor:
        """Shape: contiguous (L >= K, C, B) -> the same."""
        hidden = self.rnn(windows(self.norm(steps), self.window))
        margin = self.window - 1
        hidden = functional.pad(hidden, (0, 0, 0, 0, margin, margin))
        return steps + stepwise_product(self.fold, windows(hidden, self.window)) + self.bias


class DualPath(nn.Module):
    """Along frequency within each frame, then along time within each bin."""

    def __init__(self, channels: int, *, hidden: int, layers: int, window: int) -> None:
        super().__init__()
        self.frequency = Path(channels, hidden, layers, window)
        self.time = Path(channels, hidden, layers, window)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, N >= K, Q >= K) -> the same."""
        size, _, num_frames, num_bins = features.shape
        along = self.frequency(features.permute(3, 1, 0, 2).flatten(2).contiguous())
        along = along.unflatten(2, (size, num_frames)).permute(3, 1, 2, 0).flatten(2)
        along = self.time(along.contiguous())
        return along.unflatten(2, (size, num_bins)).permute(2, 1, 0, 3).contiguous()
