"""Global layer normalisation (gLN): over the channels and all positions of an item.

Reference: Luo and Mesgarani 2019, "Conv-TasNet".
"""

from torch import nn


def global_layer_norm(channels: int) -> nn.GroupNorm:
    """Shape: (B, C, *) -> the same."""
    return nn.GroupNorm(1, channels, eps=1e-8)
