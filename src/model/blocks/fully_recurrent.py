"""Stages of halved resolution that see their neighbours and then merge: one sub-network of CTCNet.

Axes: B batch, C channels, H hidden channels, L frames (audio or video).

References: Hu et al. 2021, "Speech separation using an asynchronous fully recurrent convolutional neural network"
(A-FRCNN); Li et al. 2022, CTCNet, auditory and visual sub-networks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.global_layer_norm import GlobalLayerNorm


def halving(channels: int, kernel: int) -> nn.Sequential:
    """Depthwise convolution of stride 2, then gLN. Shape: (B, H, L) -> (B, H, ceil(L / 2))."""
    conv = nn.Conv1d(channels, channels, kernel, 2, kernel // 2, groups=channels, bias=False)
    return nn.Sequential(conv, GlobalLayerNorm(channels))


def merging(inputs: int, channels: int) -> nn.Sequential:
    """1x1 convolution, gLN, PReLU. Shape: (B, inputs, L) -> (B, H, L)."""
    return nn.Sequential(
        nn.Conv1d(inputs, channels, 1, bias=False), GlobalLayerNorm(channels), nn.PReLU(channels)
    )


class FullyRecurrentBlock(nn.Module):
    """Bottom up through the stages, exchange between neighbouring stages, all stages merged at the finest.

    Args:
        channels, hidden: C outside and H inside.
        stages: number of resolutions.
        kernel: of the depthwise convolutions, odd.
    """

    def __init__(self, channels: int, hidden: int, *, stages: int, kernel: int) -> None:
        super().__init__()
        self.enter = merging(channels, hidden)
        self.bottom_up = nn.ModuleList(halving(hidden, kernel) for _ in range(stages - 1))
        self.to_coarser = nn.ModuleList(halving(hidden, kernel) for _ in range(stages - 1))
        neighbours = [1 + (stage > 0) + (stage < stages - 1) for stage in range(stages)]
        self.exchange = nn.ModuleList(merging(number * hidden, hidden) for number in neighbours)
        self.merge = merging(stages * hidden, hidden)
        self.leave = nn.Conv1d(hidden, channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Shape: (B, C, L) -> the same, with a residual connection."""
        pyramid = [self.enter(frames)]
        for halve in self.bottom_up:
            pyramid.append(halve(pyramid[-1]))
        exchanged = []
        for stage, (own, exchange) in enumerate(zip(pyramid, self.exchange)):
            seen = [own]
            if stage > 0:
                seen.append(self.to_coarser[stage - 1](pyramid[stage - 1]))
            if stage < len(pyramid) - 1:
                seen.append(functional.interpolate(pyramid[stage + 1], own.shape[-1], mode="nearest"))
            exchanged.append(exchange(torch.cat(seen, dim=1)))
        size = frames.shape[-1]
        finest = [
            level if level.shape[-1] == size else functional.interpolate(level, size, mode="nearest")
            for level in exchanged
        ]
        return frames + self.leave(self.merge(torch.cat(finest, dim=1)))
