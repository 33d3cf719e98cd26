from torch import Tensor

from src.metrics import functional as F
from src.metrics.base_metric import VoiceMetric


class STOIMetric(VoiceMetric):
    """Short-time objective intelligibility at 16 kHz."""

    def __init__(
        self, name: str | None = None, extended: bool = False, improvement: bool = False, order: str = "fixed"
    ):
        """
        Args:
            name: the key in logs.
            extended: ESTOI instead.
            improvement: subtract the STOI of the mix.
            order: see `VoiceMetric`.
        """
        super().__init__(name, improvement, order)
        self.extended = extended

    def score(self, *, estimate: Tensor, target: Tensor) -> float:
        return F.stoi_score(estimate=estimate, target=target, extended=self.extended)
