from torch import Tensor, nn

from src.metrics import functional as F


class NegativeSNR(nn.Module):
    """Negative SNR of every voice. Unlike SI-SNR it also teaches the level."""

    def __init__(self, *, max_db: float | None = None):
        """
        Args:
            max_db: voices that are better than this many dB get no gradient, so that easy items do not
                dominate. None: no limit.
        """
        super().__init__()
        self.max_db = max_db

    def forward(self, *, estimate: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """
        Shape:
            estimate, target (..., T); lengths (B,) samples for (B, ...) -> (...,), negative dB
        """
        value_db = F.snr(estimate=estimate, target=target, lengths=lengths)
        return -(value_db if self.max_db is None else value_db.clamp(max=self.max_db))
