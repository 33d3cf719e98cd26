"""ShuffleNetV2 as a per-frame trunk behind the stem (no first convolution or pool of its own).

Axes: N frames, C channels, H height, W width. `banch` is the published checkpoints' spelling.
"""

import torch
from torch import Tensor, nn

_STAGE_CHANNELS = {0.5: (48, 96, 192), 1.0: (116, 232, 464)}
_STAGE_UNITS = (4, 8, 4)


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    """No activation follows: ShuffleNetV2 keeps depthwise outputs linear."""
    return [
        nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    ]


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Channel shuffle of two groups: output channel 2i is `first`'s i-th, 2i+1 is `second`'s.

    Shape:
        two of (N, C, H, W) -> (N, 2C, H, W)
    """
    return torch.stack((first, second), dim=2).flatten(1, 2)


class DownsamplingUnit(nn.Module):
    """Both branches see the whole input and halve its resolution.

    Shape:
        (N, C_in, H, W) -> (N, C_out, ceil(H / 2), ceil(W / 2))

    Reference:
        Ma et al., "ShuffleNet V2", 2018, fig. 3 (d).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.banch1 = nn.Sequential(*_depthwise(in_channels, 2), *_pointwise(in_channels, half))
        self.banch2 = nn.Sequential(
            *_pointwise(in_channels, half), *_depthwise(half, 2), *_pointwise(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        return interleave(self.banch1(x), self.banch2(x))


class Unit(nn.Module):
    """One half of the channels passes untouched, the other is transformed.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Reference:
        Ma et al., "ShuffleNet V2", 2018, fig. 3 (c).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.banch2 = nn.Sequential(*_pointwise(half, half), *_depthwise(half, 1), *_pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return interleave(kept, self.banch2(changed))


class ShuffleNetV2Trunk(nn.Sequential):
    """Three stages of units, a last 1x1 convolution, the mean over the 3x3 map.

    Shape:
        (N, 24, 22, 22) -> (N, 1024)
    """

    in_channels = 24
    out_channels = 1024

    def __init__(self, *, width: float) -> None:
        units: list[nn.Module] = []
        channels = self.in_channels
        for stage_channels, num_units in zip(_STAGE_CHANNELS[width], _STAGE_UNITS):
            units.append(DownsamplingUnit(channels, stage_channels))
            units.extend(Unit(stage_channels) for _ in range(num_units - 1))
            channels = stage_channels
        super().__init__(
            nn.Sequential(*units),
            nn.Sequential(*_pointwise(channels, self.out_channels)),
            nn.AvgPool2d(3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)
