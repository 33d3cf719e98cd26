"""Masks over the learned basis out of the features of a separator.

Axes: B batch, S voices, N frames, C channels, E basis signals.
"""

from torch import Tensor, nn


class MaskHead(nn.Module):
    """PReLU, pointwise convolution and sigmoid: one mask a voice, each between 0 and 1 on its own.

    Reference: Luo and Mesgarani, "Conv-TasNet", 2019, with sigmoid masks, which need not sum to one.
    """

    def __init__(self, channels: int, voices: int, basis: int) -> None:
        super().__init__()
        self.basis = basis
        self.layers = nn.Sequential(nn.PReLU(), nn.Conv1d(channels, voices * basis, 1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, N) -> (B, S, E, N)."""
        return self.layers(features).unflatten(1, (-1, self.basis))
