"""Gate of a stack of blocks that is run again with the same weights."""

import torch
from torch import Tensor, nn


class RepeatGate(nn.Module):
    """How much of what another round of the blocks changes is taken, for every channel: at first all of it.

    Rounds with shared weights buy depth for arithmetic alone (as the repeated blocks of TDANet, Li et al., 2023, and of
    RTFS-Net, Pegg et al., 2024).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def begin_as_identity(self) -> None:
        """Let the round change nothing, as for one that is added to a trained separator."""
        nn.init.zeros_(self.weight)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Shape: (..., C), (..., C) -> (..., C)."""
        return torch.lerp(before, after, self.weight.to(before.dtype))
