"""Compress, look at the whole at low resolution, reconstruct: the block of RTFS-Net, in one or two dimensions.

Axes: B batch, C channels, D compressed channels, * one axis (video frames) or two (STFT frames, frequency bins).

References: Pegg, Li and Hu 2023, "RTFS-Net", RTFS blocks and temporal-frequency attention reconstruction units; Li,
Yang and Hu 2022, "TDANet", for the one-dimensional block.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.global_layer_norm import GlobalLayerNorm

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
PAD = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d}
POOL = {1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d}


def depthwise(channels: int, kernel: int, dims: int) -> nn.Sequential:
    """Depthwise convolution that keeps the size, then gLN."""
    margins = PAD[dims](((kernel - 1) // 2, kernel // 2) * dims)
    conv = CONV[dims](channels, channels, kernel, groups=channels, bias=False)
    return nn.Sequential(margins, conv, GlobalLayerNorm(channels))


class AttentionReconstruction(nn.Module):
    """I(m, n): the finer m gated by the coarser n, plus n. `TF-AR` unit in two dimensions."""

    def __init__(self, channels: int, kernel: int, dims: int) -> None:
        super().__init__()
        self.gate = depthwise(channels, kernel, dims)
        self.fine = depthwise(channels, kernel, dims)
        self.coarse = depthwise(channels, kernel, dims)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Shape: (B, D, *), (B, D, * no longer) -> (B, D, *) as `fine`."""
        gate, shift = self.gate(coarse).sigmoid(), self.coarse(coarse)
        if coarse.shape != fine.shape:
            gate, shift = (
                functional.interpolate(part, fine.shape[2:], mode="nearest") for part in (gate, shift)
            )
        return torch.addcmul(shift, gate, self.fine(fine))


class CompressReconstruct(nn.Module):
    """Compression to q scales, `core` on their sum at the coarsest, and reconstruction scale by scale.

    Args:
        channels, compressed: C and D.
        scales: q, the number of resolutions, each half as fine as the one before.
        kernel: of the depthwise convolutions.
        dims: 1 or 2.
        core: module over (B, D, *) at the coarsest resolution.
    """

    def __init__(
        self, channels: int, compressed: int, *, scales: int, kernel: int, dims: int, core: nn.Module
    ) -> None:
        super().__init__()
        conv = CONV[dims]
        self.pool = POOL[dims]
        self.compress = nn.Sequential(
            conv(channels, compressed, 1, bias=False), GlobalLayerNorm(compressed), nn.PReLU(compressed)
        )
        self.down = nn.ModuleList(
            nn.Sequential(
                conv(compressed, compressed, kernel, 2, (kernel - 1) // 2, groups=compressed, bias=False),
                GlobalLayerNorm(compressed),
            )
            for _ in range(scales - 1)
        )
        self.core = core
        self.inject = nn.ModuleList(AttentionReconstruction(compressed, kernel, dims) for _ in range(scales))
        self.rebuild = nn.ModuleList(
            AttentionReconstruction(compressed, kernel, dims) for _ in range(scales - 1)
        )
        bound = 1 / math.sqrt(compressed)
        self.expand = nn.Parameter(torch.empty(channels, compressed).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, C, *) -> the same, with a residual connection."""
        pyramid = [self.compress(features)]
        for down in self.down:
            pyramid.append(down(pyramid[-1]))
        size = pyramid[-1].shape[2:]
        whole = self.core(sum(self.pool(level, size) for level in pyramid[:-1]) + pyramid[-1])
        injected = [inject(level, whole) for inject, level in zip(self.inject, pyramid)]
        rebuilt = injected.pop()
        for rebuild, level, skip in zip(reversed(self.rebuild), reversed(injected), pyramid[-2::-1]):
            rebuilt = rebuild(level, rebuilt) + skip
        # Sum and product in one pass: these are the largest maps of the network
        weight = self.expand.expand(features.shape[0], -1, -1)
        return torch.baddbmm(features.flatten(2), weight, rebuilt.flatten(2)).view_as(features)
