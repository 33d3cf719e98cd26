from torch import Tensor

from src.metrics import functional as F
from src.metrics.base_metric import VoiceMetric


class PESQMetric(VoiceMetric):
    """PESQ at 16 kHz (MOS-LQO). Voices in which PESQ finds no utterance are counted as undefined."""

    def __init__(
        self, name: str | None = None, mode: str = "wb", improvement: bool = False, order: str = "fixed"
    ):
        """
        Args:
            name: the key in logs.
            mode: "wb" or "nb".
            improvement: subtract the PESQ of the mix.
            order: see `VoiceMetric`.
        """
        super().__init__(name, improvement, order)
        self.mode = mode

    def score(self, *, estimate: Tensor, target: Tensor) -> float:
        return F.pesq_score(estimate=estimate, target=target, mode=self.mode)
