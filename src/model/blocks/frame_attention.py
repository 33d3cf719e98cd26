"""Self-attention between the frames of a time-frequency map.

Axes: B batch, C channels, N STFT frames, Q frequency bins, A heads, E channels of a key, V = C / A of a value.

Reference: Wang et al. 2023, "TF-GridNet", self-attention between frames; RTFS-Net uses it after its dual path.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class HeadNorm(nn.Module):
    """Layer normalisation over the channels and bins of each head of each frame."""

    def __init__(self, heads: int, channels: int, num_bins: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, channels, num_bins))
        self.bias = nn.Parameter(torch.zeros(heads, channels, num_bins))

    def forward(self, frames: Tensor) -> Tensor:
        """Shape: (B, N, A, E, Q) -> the same."""
        return torch.addcmul(self.bias, functional.layer_norm(frames, frames.shape[-2:]), self.weight)


class FrameAttention(nn.Module):
    """Each frame is a token: all channels and bins of it make a key, a query and a value; residual.

    Args:
        channels: C, a multiple of `heads`.
        num_bins: Q.
        heads, key_channels: A and E.
    """

    def __init__(self, channels: int, num_bins: int, *, heads: int, key_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.widths = [heads * key_channels, heads * key_channels, channels]
        self.project = nn.Conv1d(channels, sum(self.widths), 1)
        self.norms = nn.ModuleList(HeadNorm(heads, width // heads, num_bins) for width in self.widths)
        self.out = nn.Conv1d(channels, channels, 1)
        self.activations = nn.ModuleList(nn.PReLU() for _ in range(2))
        self.out_norm = nn.LayerNorm((channels, num_bins))

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, N, Q) -> the same."""
        size, _, num_frames, num_bins = features.shape
        # Frames first: what is normalised together then lies together
        frames = features.transpose(1, 2).flatten(0, 1)
        parts = self.activations[0](self.project(frames)).unflatten(0, (size, num_frames))
        query, key, value = (
            norm(part.unflatten(2, (self.heads, -1))).transpose(1, 2).flatten(3)
            for norm, part in zip(self.norms, parts.split(self.widths, dim=2))
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(size * num_frames, -1, num_bins)
        attended = self.out_norm(self.activations[1](self.out(attended)))
        return features + attended.unflatten(0, (size, num_frames)).transpose(1, 2)
