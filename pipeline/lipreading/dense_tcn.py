"""The densely connected temporal convolutional network with squeeze-and-excitation.

Axes: B clips, C channels, T video frames.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from pipeline.lipreading.activation import make_activation
from pipeline.lipreading.tcn import DROPOUT, same_conv

KERNELS = (3, 5, 7)
DILATIONS = (1, 2, 5)  # of the three layers of every block
NUM_BLOCKS = 4
GROWTH = 384
REDUCED = 512
SE_REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """Gates every channel by a value in (0, 1) that is constant over the clip.

    The mean runs over all T positions, so outputs depend on how a clip is padded or cut.

    Shape:
        (B, C, T) -> (B, C, T)

    Reference:
        Hu et al., "Squeeze-and-excitation networks", 2018, eq. 2-4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // SE_REDUCTION, bias=False),
            nn.SiLU(),
            nn.Linear(channels // SE_REDUCTION, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=-1)).unsqueeze(-1)


class ConvBatchNorm(nn.Module):
    """Convolution, batch norm, swish.

    Shape:
        (B, C_in, T) -> (B, C_out, T)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            same_conv(in_channels, out_channels, kernel, dilation=dilation),
            nn.BatchNorm1d(out_channels),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class DenseLayer(nn.Module):
    """Two rounds of parallel branches (the first gated) and an ungated shortcut.

    Shape:
        (B, C, T) -> (B, GROWTH, T)

    Reference:
        Ma et al., "Lip-reading with densely connected temporal convolutional networks", 2021, fig. 2.
    """

    def __init__(self, in_channels: int, *, dilation: int) -> None:
        super().__init__()
        width = GROWTH // len(KERNELS)
        for j, kernel in enumerate(KERNELS):
            self.add_module(f"cbcr0_se_{j}", SqueezeExcitation(in_channels))
            self.add_module(f"cbcr0_{j}", ConvBatchNorm(in_channels, width, kernel, dilation=dilation))
        for j, kernel in enumerate(KERNELS):
            self.add_module(f"cbcr1_{j}", ConvBatchNorm(GROWTH, width, kernel, dilation=dilation))
        self.downsample = nn.Conv1d(in_channels, GROWTH, 1)
        self.activation = nn.SiLU()
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        branches = range(len(KERNELS))
        gated = (self.get_submodule(f"cbcr0_se_{j}")(x) for j in branches)
        hidden = torch.cat([self.get_submodule(f"cbcr0_{j}")(g) for j, g in enumerate(gated)], dim=1)
        hidden = self.dropout(hidden)
        hidden = torch.cat([self.get_submodule(f"cbcr1_{j}")(hidden) for j in branches], dim=1)
        return self.activation(self.dropout(hidden) + self.downsample(x))


class DenseBlock(nn.Module):
    """Each layer sees the block's input and all earlier layers' outputs.

    Shape:
        (B, C, T) -> (B, C + 3 GROWTH, T)
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        for i, dilation in enumerate(DILATIONS):
            self.add_module(f"denselayer{i + 1}", DenseLayer(in_channels + i * GROWTH, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Transition(nn.Module):
    """Narrows the channels to REDUCED.

    The first one uses PReLU (and calls it ``prelu`` in its keys), the others swish.

    Shape:
        (B, C, T) -> (B, REDUCED, T)
    """

    def __init__(self, in_channels: int, *, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, REDUCED, 1, bias=False)
        self.norm = nn.BatchNorm1d(REDUCED)
        self.add_module(activation, make_activation(activation, REDUCED))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class DenseTCN(nn.Module):
    """Transitions and dense blocks in turn, then a batch norm.

    Shape:
        (B, in_channels, T) -> (B, 1664, T)
    """

    # The squeeze-and-excitation mean runs over the whole clip: no finite context makes a window exact.
    context_frames: int | None = None
    out_channels = REDUCED + len(DILATIONS) * GROWTH

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for i in range(NUM_BLOCKS):
            layers[f"transition{i}"] = Transition(channels, activation="swish" if i else "prelu")
            layers[f"denseblock{i + 1}"] = DenseBlock(REDUCED)
            channels = self.out_channels
        layers["norm5"] = nn.BatchNorm1d(channels)
        self.features = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)
