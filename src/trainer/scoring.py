"""Scores of separated voices against the truth, read back from the files as written.

Axes: B = 1 recording, S = 2 voices, T samples at 16 kHz.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.audio_io import SAMPLE_RATE_HZ, audio_info, read_audio
from src.metrics import functional as F
from src.metrics.base_metric import BaseMetric, BatchMean

# Longer recordings are scored piece by piece: memory stays bounded, and PESQ and STOI are meant for sentences.
PIECE_S = 60


@dataclass(frozen=True)
class Written:
    """A separated recording with truth.

    Attributes:
        mix: the mixture.
        voices: files of the two estimates.
        truths: files of the true voices, None where absent.
        ordered: whether lips fixed the order of the voices; if not, the better order counts.
    """

    mix: str
    voices: tuple[str, str]
    truths: tuple[str | None, str | None]
    ordered: bool


@dataclass(frozen=True)
class Value:
    """A metric on one piece of a recording.

    Attributes:
        mean: over the voices that have a value.
        count: how many have one.
        undefined: how many have none.
        share: length of the piece in the recording's.
    """

    mean: float
    count: int
    undefined: int
    share: float

    def as_batch_mean(self) -> BatchMean:
        """The value as `MetricTracker` takes it."""
        return BatchMean([self.mean] * self.count, undefined=self.undefined)


def score(written: Written, metrics: Sequence[BaseMetric]) -> dict[str, list[Value]]:
    """Values of every metric on the pieces of a recording, of a minute or so each.

    Where lips did not fix the order, the one with the higher mean SI-SNR is taken for the whole recording.

    Raises:
        AudioError: a truth cannot be read.
    """
    order = torch.tensor([[0, 1]]) if written.ordered else _best_order(written)
    values: dict[str, list[Value]] = {metric.name: [] for metric in metrics}
    for piece, share in _pieces(written):
        piece["estimates"] = F.permute(piece["estimates"], order)
        for metric in metrics:
            mean = metric(**piece)
            values[metric.name].append(Value(float(mean), mean.count, mean.undefined, share))
    return values


def _best_order(written: Written) -> Tensor:
    scores = [
        F.pairwise(F.si_snr, estimates=piece["estimates"], targets=piece["sources"]) * share
        for piece, share in _pieces(written)
    ]
    return F.best_assignment(torch.stack(scores).sum(dim=0))


def _pieces(written: Written) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Pieces as batches of one, aligned from the start up to the end of the shortest file, with their share."""
    total = min(_length(path) for path in (written.mix, *written.truths) if path is not None)
    number = max(1, round(total / (PIECE_S * SAMPLE_RATE_HZ)))
    bounds = [i * total // number for i in range(number + 1)]
    for start, stop in pairwise(bounds):
        mix, *voices = (
            torch.zeros(stop - start)
            if path is None
            else read_audio(path, start=start, num_samples=stop - start)
            for path in (written.mix, *written.voices, *written.truths)
        )
        piece = {
            "mix": mix[None],
            "estimates": torch.stack(voices[:2])[None],
            "sources": torch.stack(voices[2:])[None],
            "sources_mask": torch.tensor([[path is not None for path in written.truths]]),
            # The order is settled for the whole recording: metrics must not choose one piece by piece.
            "visual_mask": torch.ones(1, 2, dtype=torch.bool),
        }
        yield piece, (stop - start) / total


def _length(path: str) -> int:
    info = audio_info(path)
    return info.num_samples * SAMPLE_RATE_HZ // info.rate_hz
