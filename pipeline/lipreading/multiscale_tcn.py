"""The multi-scale temporal convolutional network, plain and depthwise-separable.

Axes: B clips, C channels, T video frames.
"""

import torch
from torch import Tensor, nn

from pipeline.lipreading.activation import make_activation
from pipeline.lipreading.tcn import DILATIONS, DROPOUT, same_conv

KERNELS = (3, 5, 7)


class Branch(nn.Module):
    """Convolution, batch norm, activation.

    Shape:
        (B, C_in, T) -> (B, C_out, T)
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, dilation: int, activation: str
    ) -> None:
        super().__init__()
        self.conv = same_conv(in_channels, out_channels, kernel, dilation=dilation)
        self.batchnorm = nn.BatchNorm1d(out_channels)
        self.activation = make_activation(activation, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.batchnorm(self.conv(x)))


class SeparableBranch(nn.Module):
    """A depthwise convolution along time, then a pointwise one, each with batch norm and activation.

    Shape:
        (B, C_in, T) -> (B, C_out, T)

    Reference:
        Ma et al., "Towards practical lipreading with distilled and efficient models", 2021, sec. 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, dilation: int, activation: str
    ) -> None:
        super().__init__()
        # Index 2 is where the published keys count a layer that crops padding; here nothing needs cropping.
        self.conv = nn.Sequential(
            same_conv(in_channels, in_channels, kernel, dilation=dilation, bias=False, groups=in_channels),
            nn.BatchNorm1d(in_channels),
            nn.Identity(),
            make_activation(activation, in_channels),
            nn.Conv1d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm1d(out_channels),
            make_activation(activation, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MultiScaleBlock(nn.Module):
    """Two rounds of parallel branches of different kernels, and a shortcut that is always a convolution.

    Shape:
        (B, C_in, T) -> (B, width, T)

    Reference:
        Martinez et al., "Lipreading using temporal convolutional networks", 2020, fig. 2 (c).
    """

    def __init__(
        self, in_channels: int, width: int, *, dilation: int, activation: str, separable: bool
    ) -> None:
        super().__init__()
        branch = SeparableBranch if separable else Branch
        for round_, channels in enumerate((in_channels, width)):
            for j, kernel in enumerate(KERNELS):
                layer = branch(
                    channels, width // len(KERNELS), kernel, dilation=dilation, activation=activation
                )
                self.add_module(f"cbcr{round_}_{j}", layer)
        self.downsample = nn.Conv1d(in_channels, width, 1)
        self.activation = make_activation(activation, width)
        self.dropout = nn.Dropout(DROPOUT)

    def _round(self, round_: int, x: Tensor) -> Tensor:
        branches = [self.get_submodule(f"cbcr{round_}_{j}")(x) for j in range(len(KERNELS))]
        return self.dropout(torch.cat(branches, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self._round(1, self._round(0, x)) + self.downsample(x))


class MultiScaleTCN(nn.Module):
    """Four multi-scale blocks of growing dilation.

    Shape:
        (B, in_channels, T) -> (B, width, T)
    """

    # Two rounds a block; the widest kernel decides.
    context_frames: int | None = sum(2 * (max(KERNELS) - 1) // 2 * d for d in DILATIONS)

    def __init__(self, in_channels: int, *, width: int, activation: str, separable: bool) -> None:
        super().__init__()
        self.out_channels = width
        self.network = nn.Sequential(
            *(
                MultiScaleBlock(
                    width if i else in_channels,
                    width,
                    dilation=d,
                    activation=activation,
                    separable=separable,
                )
                for i, d in enumerate(DILATIONS)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
