from torch import Tensor

from src.metrics import functional as F
from src.metrics.base_metric import VoiceMetric


class SDRMetric(VoiceMetric):
    """SDR of BSS-eval, or with ``improvement: true`` SDRi, in dB."""

    def score(self, *, estimate: Tensor, target: Tensor) -> float:
        return float(F.sdr(estimate=estimate, target=target))
