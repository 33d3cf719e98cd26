"""All metrics of one mixture, from its files. This is what worker processes run.

Axes: S speakers, T samples.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.audio_io import AudioError, audio_info, read_audio
from src.metrics import functional as F
from src.metrics.base_metric import score_voice
from src.metrics.pairing import VOICES, Pair
from src.metrics.problems import Problem

SAMPLE_RATE_HZ = F.SAMPLE_RATE_HZ
# Two resampled files of the same duration may differ by as much.
_RESAMPLING_SLACK = 2


@dataclass(frozen=True)
class MetricSpec:
    """One column of the evaluation.

    Attributes:
        name: heading.
        score: ``score(estimate=, target=)`` of one voice.
        improvement: heading of the difference to the mixture, None where it is not asked for.
    """

    name: str
    score: Callable[..., float | Tensor]
    improvement: str | None = None


@dataclass(frozen=True)
class VoiceScores:
    """What one voice of one mixture scores.

    Attributes:
        name: mixture.
        voice: s1 or s2, the truth's name.
        estimate: the folder of the estimate; differs from ``voice`` only where PIT exchanged the two.
        input_snr_db: SNR of the unprocessed mixture against this voice, NaN without a mixture.
        values: by heading; NaN where a metric has no value.
        duration_s: length of the span that was scored.
    """

    name: str
    voice: str
    estimate: str
    input_snr_db: float
    values: dict[str, float]
    duration_s: float


@dataclass
class FileScores:
    """Result of one mixture: scores of its voices, what was wrong, and what is worth a note."""

    voices: list[VoiceScores] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def metric_specs(
    *, narrow_band: bool = False, extended_stoi: bool = False, only: Sequence[str] | str | None = None
) -> list[MetricSpec]:
    """The metrics of the evaluation, in the order of the columns.

    Args:
        narrow_band: narrow-band PESQ too.
        extended_stoi: ESTOI too.
        only: names of those wanted, or one name; None for all.

    Raises:
        ValueError: no name, or one that does not exist.
    """
    specs = [
        MetricSpec("SI-SNR", F.si_snr, improvement="SI-SNRi"),
        MetricSpec("SDR", F.sdr, improvement="SDRi"),
        MetricSpec("PESQ-wb", partial(F.pesq_score, mode="wb")),
    ]
    if narrow_band:
        specs.append(MetricSpec("PESQ-nb", partial(F.pesq_score, mode="nb")))
    specs.append(MetricSpec("STOI", F.stoi_score))
    if extended_stoi:
        specs.append(MetricSpec("ESTOI", partial(F.stoi_score, extended=True)))
    names = [spec.name for spec in specs]
    if only is None:
        return specs
    only = [only] if isinstance(only, str) else list(only)
    if not only:
        raise ValueError(f"only=[]: names no metric; there are {', '.join(names)}")
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"only=[{', '.join(only)}]: no {', '.join(unknown)}; there are {', '.join(names)}")
    return [spec for spec in specs if spec.name in only]


def column_names(specs: list[MetricSpec]) -> list[str]:
    """Headings of all metrics and improvements."""
    return [name for spec in specs for name in (spec.name, spec.improvement) if name is not None]


def score_pair(pair: Pair, specs: list[MetricSpec], *, pit: bool = False) -> FileScores:
    """Score both voices of a mixture. Bad data becomes problems, not exceptions.

    Args:
        pair: the files.
        specs: the metrics.
        pit: give the estimates the order of the best SI-SNR first, for audio-only models.
    """
    result = FileScores()
    voices = [voice for voice in VOICES if voice in pair.estimates and voice in pair.truths]
    if not voices:
        return result
    estimates = _read(pair, {voice: pair.estimates[voice] for voice in voices}, "estimate", result)
    truths = _read(pair, {voice: pair.truths[voice] for voice in voices}, "truth", result)
    mixes = _read(pair, {"mix": pair.mix} if pair.mix is not None else {}, "mixture", result)
    voices = [voice for voice in voices if voice in estimates and voice in truths]
    if not voices:
        return result
    span = _common_span(pair, {**_named("estimate", estimates), **_named("truth", truths), **mixes}, result)
    mix = mixes["mix"][:span] if mixes else None
    target = torch.stack([truths[voice][:span] for voice in voices])  # (S, T)
    estimate = torch.stack([estimates[voice][:span] for voice in voices])
    order = list(range(len(voices)))
    if pit and len(voices) == len(VOICES):
        order = F.best_permutation(estimates=estimate[None], targets=target[None])[0].tolist()
    elif pit:
        detail = "only one voice can be scored, so the order could not be chosen and was left as it is"
        result.problems.append(Problem(pair.name, voices[0], "no permutation", detail))
    for row, voice in enumerate(voices):
        values, failures = _score_voice(specs, estimate[order[row]], target[row], mix)
        for (kind, detail), headings in failures.items():
            result.problems.append(Problem(pair.name, voice, kind, f"{detail}; no {', '.join(headings)}"))
        with_mix = mix is not None and not F.is_silent(target[row])
        input_snr_db = float(F.snr(estimate=mix, target=target[row])) if with_mix else math.nan
        result.voices.append(
            VoiceScores(
                pair.name, voice, voices[order[row]], input_snr_db, values, duration_s=span / SAMPLE_RATE_HZ
            )
        )
    return result


def _score_voice(
    specs: list[MetricSpec], estimate: Tensor, target: Tensor, mix: Tensor | None
) -> tuple[dict[str, float], dict[tuple[str, str], list[str]]]:
    """Values by heading, and the headings without value by (kind, detail) of the reason."""
    values: dict[str, float] = {}
    failures: dict[tuple[str, str], list[str]] = {}

    def attempt(heading: str, signal: Tensor, score: Callable, of_mix: bool) -> float:
        try:
            return score_voice(score, estimate=signal, target=target)
        except F.UndefinedMetricError as error:
            reason = str(error).replace("estimate", "mixture") if of_mix else str(error)
            failures.setdefault((_kind(reason), reason), []).append(heading)
            return math.nan

    for spec in specs:
        values[spec.name] = attempt(spec.name, estimate, spec.score, of_mix=False)
        if spec.improvement is None:
            continue
        values[spec.improvement] = math.nan
        if mix is not None and not math.isnan(values[spec.name]):
            base = attempt(spec.improvement, mix, spec.score, of_mix=True)
            values[spec.improvement] = values[spec.name] - base
    return values, failures


def _kind(reason: str) -> str:
    """Reasons without their figures, so that they can be counted."""
    return reason.split(",")[0] if reason.startswith(("PESQ needs", "STOI needs")) else reason


def _read(pair: Pair, paths: dict[str, Path], role: str, result: FileScores) -> dict[str, Tensor]:
    """Read files by voice as (T,) float64 at 16 kHz; those that cannot be read become problems."""
    signals = {}
    for voice, path in paths.items():
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                rate_hz = audio_info(path).rate_hz
                signals[voice] = read_audio(path, SAMPLE_RATE_HZ).double()
        except (AudioError, OSError) as error:
            result.problems.append(Problem(pair.name, voice, f"unreadable {role}", str(error)))
            continue
        result.notes.extend(str(warning.message) for warning in caught)
        if rate_hz != SAMPLE_RATE_HZ:
            result.notes.append(f"{path}: {rate_hz} Hz, resampled to {SAMPLE_RATE_HZ} Hz for the metrics")
    return signals


def _common_span(pair: Pair, signals: dict[str, Tensor], result: FileScores) -> int:
    lengths = {name: signal.numel() for name, signal in signals.items()}
    shortest, longest = min(lengths.values()), max(lengths.values())
    slack = _RESAMPLING_SLACK if any("resampled" in note for note in result.notes) else 0
    if longest - shortest > slack:
        listed = ", ".join(f"{name} {count}" for name, count in lengths.items())
        detail = f"{listed} samples at {SAMPLE_RATE_HZ} Hz; the first {shortest} were scored"
        result.problems.append(Problem(pair.name, "file", "lengths differ", detail))
    return shortest


def _named(role: str, signals: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{role} {voice}": signal for voice, signal in signals.items()}
