"""The spatio-temporal stem: one 3D convolution over the clip, before the frames part ways.

Axes: B clips, C channels, T video frames, H height, W width.
"""

from torch import nn

# Half the temporal kernel: what a frame's embedding sees on each side. All later front-end layers are
# per frame, so a window with this much context (zeros beyond the clip's ends) is exact.
STEM_CONTEXT_FRAMES = 2


class Stem(nn.Sequential):
    """5x7x7 convolution, batch norm, activation and a spatial max pool.

    Args:
        channels: C.
        activation: after the batch norm.
        light: a 5x8x8 convolution that takes every fourth pixel at once instead, and no pool: most of a small
            network's time would go into maps of half size.

    Shape:
        input (B, 1, T, 88, 88) -> output (B, C, T, 22, 22)

    Reference:
        Stafylakis, Tzimiropoulos, "Combining residual networks with LSTMs for lipreading", 2017, sec. 3.1.
    """

    def __init__(self, *, channels: int, activation: nn.Module, light: bool = False) -> None:
        side, stride, padding = (8, 4, 2) if light else (7, 2, 3)
        super().__init__(
            nn.Conv3d(
                1,
                channels,
                kernel_size=(2 * STEM_CONTEXT_FRAMES + 1, side, side),
                stride=(1, stride, stride),
                padding=(STEM_CONTEXT_FRAMES, padding, padding),
                bias=False,
            ),
            nn.BatchNorm3d(channels),
            activation,
            nn.Identity()
            if light
            else nn.MaxPool3d(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
