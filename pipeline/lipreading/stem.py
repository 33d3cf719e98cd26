"""The spatio-temporal stem: one 3D convolution over the clip, before the frames part ways.

Axes: B clips, C channels, T video frames, H height, W width.
"""

from torch import nn

# Half the temporal kernel: what a frame's embedding sees on each side. All later front-end layers are
# per frame, so a window with this much context (zeros beyond the clip's ends) is exact.
STEM_CONTEXT_FRAMES = 2


class Stem(nn.Sequential):
    """5x7x7 convolution, batch norm, activation and a spatial max pool.

    Shape:
        input (B, 1, T, 88, 88) -> output (B, C, T, 22, 22)

    Reference:
        Stafylakis, Tzimiropoulos, "Combining residual networks with LSTMs for lipreading", 2017, sec. 3.1.
    """

    def __init__(self, *, channels: int, activation: nn.Module) -> None:
        super().__init__(
            nn.Conv3d(
                1,
                channels,
                kernel_size=(2 * STEM_CONTEXT_FRAMES + 1, 7, 7),
                stride=(1, 2, 2),
                padding=(STEM_CONTEXT_FRAMES, 3, 3),
                bias=False,
            ),
            nn.BatchNorm3d(channels),
            activation,
            nn.MaxPool3d(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )


class LightStem(nn.Sequential):
    """5x8x8 convolution that takes every fourth pixel at once, batch norm and activation; nothing is pooled.

    Most of a small network's time goes into its first full-size maps; this one never has any.

    Shape:
        input (B, 1, T, 88, 88) -> output (B, C, T, 22, 22)
    """

    def __init__(self, *, channels: int, activation: nn.Module) -> None:
        super().__init__(
            nn.Conv3d(
                1,
                channels,
                kernel_size=(2 * STEM_CONTEXT_FRAMES + 1, 8, 8),
                stride=(1, 4, 4),
                padding=(STEM_CONTEXT_FRAMES, 2, 2),
                bias=False,
            ),
            nn.BatchNorm3d(channels),
            activation,
            nn.Identity(),
        )
