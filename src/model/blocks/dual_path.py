"""Dual-path recurrent block: along each chunk, then across chunks.

Axes: B batch, G chunks, K frames of a chunk, C channels.

Reference: Luo, Chen and Yoshioka, "Dual-path RNN", 2020, intra- and inter-chunk processing.
"""

from torch import Tensor, nn

from src.model.blocks.global_layer_norm import GlobalLayerNorm
from src.model.blocks.lstm import LSTM


class RecurrentPath(nn.Module):
    """BLSTM, projection to C channels and gLN with a residual path, along the third axis.

    Args:
        channels: C.
        hidden: units of the LSTM per direction.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lstm = LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * hidden, channels)
        self.norm = GlobalLayerNorm(channels)

    def forward(self, chunks: Tensor) -> Tensor:
        """Shape: (B, G, K, C) -> the same."""
        mixed = self.project(self.lstm(chunks.flatten(0, 1))[0]).unflatten(0, chunks.shape[:2])
        return chunks + self.norm(mixed.movedim(-1, 1)).movedim(1, -1)


class DualPathBlock(nn.Module):
    """The intra-chunk path sees K frames in a row, the inter-chunk path one frame of every chunk."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.intra = RecurrentPath(channels, hidden)
        self.inter = RecurrentPath(channels, hidden)

    def forward(self, chunks: Tensor) -> Tensor:
        """Shape: (B, G, K, C) -> the same."""
        return self.inter(self.intra(chunks).transpose(1, 2)).transpose(1, 2)
