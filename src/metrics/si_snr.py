import math

from torch import Tensor

from src.metrics import functional as F
from src.metrics.base_metric import VoiceMetric


class SISNRMetric(VoiceMetric):
    """SI-SNR, or with ``improvement: true`` SI-SNRi, in dB."""

    def score(self, *, estimate: Tensor, target: Tensor) -> float:
        return float(F.si_snr(estimate=estimate, target=target))

    def scores(self, *, estimates: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
        # At once: this one runs in every training step, and on a GPU each single voice would be a
        # synchronisation.
        silent = F.is_silent(estimates, lengths=lengths) | F.is_silent(targets, lengths=lengths)
        return F.si_snr(estimate=estimates, target=targets, lengths=lengths).masked_fill(silent, math.nan)
