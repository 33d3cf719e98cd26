"""The template's metric contract, and what all metrics of separated voices share.

Axes: B batch, S speakers, T samples.
"""

import contextlib
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from src.metrics import functional as F

ORDERS = ("fixed", "pit", "lips")


class BatchMean(float):
    """A mean over the voices of a batch that knows how many voices it is over.

    An ordinary float for whoever only wants the figure (NaN when no voice had a value). `MetricTracker` reads
    the counts, so that voices without a value weigh nothing and are reported.

    Attributes:
        count: voices in the mean.
        undefined: voices for which the metric has no value (a silent truth, PESQ without utterances).
    """

    count: int
    undefined: int

    def __new__(cls, values: list[float], undefined: int = 0) -> "BatchMean":
        mean = super().__new__(cls, math.fsum(values) / len(values) if values else math.nan)
        mean.count = len(values)
        mean.undefined = undefined
        return mean


class BaseMetric(ABC):
    """A named number computed from a batch."""

    def __init__(self, name: str | None = None):
        """
        Args:
            name: the key in logs and in ``trainer.monitor``; the class name by default.
        """
        self.name = name if name is not None else type(self).__name__

    @abstractmethod
    def __call__(self, **batch) -> float:
        """Compute the metric from whatever it needs of the batch."""


class VoiceMetric(BaseMetric):
    """Mean of a per-voice metric over all voices of a batch.

    Subclasses say what one voice scores. Everything is computed on the valid samples, in float64.
    """

    def __init__(self, name: str | None = None, improvement: bool = False, order: str = "fixed"):
        """
        Args:
            name: the key in logs.
            improvement: subtract what the unprocessed mix scores against the same voice.
            order: which estimate is scored against which voice.
                "fixed": in the order of the batch.
                "pit": in the best order by SI-SNR, found per item, for audio-only models.
                "lips": fixed for every item with at least one mouth, where permuting would hide swapped voices;
                "pit" for items that have none.

        Raises:
            ValueError: an unknown order.
        """
        super().__init__(name)
        if order not in ORDERS:
            raise ValueError(f"{self.name}: order={order!r}, choose one of {', '.join(ORDERS)}")
        self.improvement = improvement
        self.order = order

    @abstractmethod
    def score(self, *, estimate: Tensor, target: Tensor) -> float:
        """Score of one voice.

        Shape:
            estimate, target (T,), float64

        Raises:
            UndefinedMetricError: there is no value for this voice.
        """

    def __call__(
        self,
        *,
        estimates: Tensor,
        sources: Tensor | None = None,
        mix: Tensor | None = None,
        lengths: Tensor | None = None,
        sources_mask: Tensor | None = None,
        visual_mask: Tensor | None = None,
        **batch,
    ) -> BatchMean:
        """Mean over batch and voices.

        A batch without ``sources`` (recordings without truth) gives NaN with a count of 0, which the tracker
        skips. Single voices without truth (False in ``sources_mask``) are left out the same way.

        Shape:
            estimates, sources (B, S, T); mix (B, T), needed for improvements; lengths (B,) samples;
            sources_mask (B, S) bool; visual_mask (B, S) bool, lips that were used (absent: none)

        Raises:
            ValueError: an improvement was asked for and the batch has no mix.
        """
        if sources is None:
            return BatchMean([])
        if self.improvement and mix is None:
            raise ValueError(f"{self.name}: an improvement needs 'mix' in the batch; set improvement: false")
        estimates, sources = estimates.detach().double(), sources.detach().double()
        if self.order != "fixed":
            best = F.best_permutation(estimates=estimates, targets=sources, lengths=lengths)
            if self.order == "lips" and visual_mask is not None:
                given = torch.arange(sources.shape[1], device=sources.device)
                best = torch.where(visual_mask.any(dim=1, keepdim=True), given, best)
            estimates = F.permute(estimates, best)
        scores = self.scores(estimates=estimates, targets=sources, lengths=lengths)
        if self.improvement:
            mixes = mix.detach().double().unsqueeze(1).expand_as(sources)
            scores = scores - self.scores(estimates=mixes, targets=sources, lengths=lengths)
        scores = scores.flatten() if sources_mask is None else scores[sources_mask]
        values = [value for value in scores.tolist() if not math.isnan(value)]
        return BatchMean(values, undefined=len(scores) - len(values))

    def scores(self, *, estimates: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
        """Scores of all voices, NaN where there is none. Subclasses may compute the batch at once.

        Shape:
            estimates, targets (B, S, T), lengths (B,) -> (B, S)
        """
        scores = targets.new_full(targets.shape[:2], math.nan)
        for item in range(targets.shape[0]):
            end = targets.shape[-1] if lengths is None else int(lengths[item])
            for voice in range(targets.shape[1]):
                # no value: stays NaN, which the caller counts
                with contextlib.suppress(F.UndefinedMetricError):
                    scores[item, voice] = score_voice(
                        self.score, estimate=estimates[item, voice, :end], target=targets[item, voice, :end]
                    )
        return scores


def score_voice(score, *, estimate: Tensor, target: Tensor) -> float:
    """Apply a score to one voice, with the rule that nothing is scored against or from silence.

    Args:
        score: callable with ``estimate=`` and ``target=``.
        estimate: the separated voice, or the mix.
        target: the true voice.

    Shape:
        estimate, target (T,)

    Raises:
        UndefinedMetricError: the truth or the estimate is silent, or the score itself has no value.
    """
    if F.is_silent(target):
        raise F.UndefinedMetricError("truth is silent")
    if F.is_silent(estimate):
        raise F.UndefinedMetricError("estimate is silent")
    value = float(score(estimate=estimate, target=target))
    if not math.isfinite(value):
        raise F.UndefinedMetricError(f"value is {value}")
    return value
