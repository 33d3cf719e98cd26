"""Temporal convolutional network (TCN) of dilated depthwise-separable convolutions.

Axes: B batch, N frames, C channels of the residual path, H channels inside a block, K channels of the skip path.

Reference: Luo and Mesgarani, "Conv-TasNet", 2019, convolutional separation module.
"""

from torch import Tensor, nn

from src.model.blocks.global_layer_norm import GlobalLayerNorm


class TemporalBlock(nn.Module):
    """Pointwise to H channels, dilated depthwise convolution, pointwise to the residual and the skip path.

    Args:
        residual: whether features go on to a further block; the last one has the skip path alone.
    """

    def __init__(
        self, channels: int, hidden: int, skip: int, kernel: int, dilation: int, residual: bool = True
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.hidden = nn.Sequential(
            nn.Conv1d(channels, hidden, 1),
            nn.PReLU(),
            GlobalLayerNorm(hidden),
            nn.Conv1d(hidden, hidden, kernel, padding=padding, dilation=dilation, groups=hidden),
            nn.PReLU(),
            GlobalLayerNorm(hidden),
        )
        self.residual = nn.Conv1d(hidden, channels, 1) if residual else None
        self.skip = nn.Conv1d(hidden, skip, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: (B, C, N) -> (B, C, N), (B, K, N)."""
        hidden = self.hidden(features)
        if self.residual is not None:
            features = features + self.residual(hidden)
        return features, self.skip(hidden)


class TemporalConvNet(nn.Module):
    """`repeats` times `blocks` temporal blocks with dilations 1, 2, 4, ...; skip paths are summed.

    Args:
        channels, hidden, skip: C, H, K.
        kernel: length of the depthwise convolutions, odd.
        blocks: X, blocks a repeat.
        repeats: R.
        ends: whether nothing but the skip path follows, so that the last block needs no residual path.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self, *, channels: int, hidden: int, skip: int, kernel: int, blocks: int, repeats: int, ends: bool
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(
                f"temporal convolutional network: kernel={kernel} must be odd to keep the length"
            )
        last = blocks * repeats - 1
        self.blocks = nn.ModuleList(
            TemporalBlock(
                channels, hidden, skip, kernel, 2 ** (i % blocks), residual=not (ends and i == last)
            )
            for i in range(blocks * repeats)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: (B, C, N) -> features after the last residual path (B, C, N), summed skips (B, K, N)."""
        total = 0
        for block in self.blocks:
            features, skip = block(features)
            total = total + skip
        return features, total
