"""Global layer normalisation (gLN) of non-causal separators.

Axes: B batch, C channels; ``...`` any further axes.
"""

from torch import nn


class GlobalLayerNorm(nn.GroupNorm):
    """Mean and variance over channels and all further axes of an item, scale and shift per channel.

    Shape: (B, C, ...) -> the same.

    Reference: Luo and Mesgarani, "Conv-TasNet", 2019, definition of gLN; it is group normalisation with one group.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=1e-8)
