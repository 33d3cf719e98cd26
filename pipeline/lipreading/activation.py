"""The activations the published configurations choose from."""

from torch import nn


def make_activation(kind: str, channels: int) -> nn.Module:
    """Returns a fresh activation; ``prelu`` learns one slope per channel, the others have no parameters.

    Raises:
        ValueError: `kind` is none of relu, prelu, swish.
    """
    if kind == "relu":
        return nn.ReLU()
    if kind == "prelu":
        return nn.PReLU(channels)
    if kind == "swish":
        return nn.SiLU()
    raise ValueError(f"activation {kind!r} is unknown; choose relu, prelu or swish")
