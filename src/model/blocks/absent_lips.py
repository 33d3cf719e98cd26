"""Learnt stand-ins for the lips of voices that have none.

Axes: B batch, S = 2 voices, N frames, V channels of the lip cue.
"""

import torch
from torch import Tensor, nn


class AbsentLips(nn.Module):
    """One of two slots where neither voice has lips (the voices must differ in something), and 'the other
    voice' where only its companion has them.

    Args:
        channels: V.
    """

    SLOTS, OTHER = slice(0, 2), 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(3, channels))

    def forward(self, visual_mask: Tensor) -> Tensor:
        """Cues for voices without lips. Shape: (B, S=2) bool -> (B, S, V)."""
        alone = ~visual_mask.any(dim=1)[:, None, None]
        return torch.where(alone, self.embeddings[self.SLOTS], self.embeddings[self.OTHER])
