"""Evaluate a directory of estimates: every pair in worker processes, then statistics by voice and by input SNR."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from src.metrics.bootstrap import bootstrap_interval
from src.metrics.grouping import Grouping, GroupingError
from src.metrics.pairing import VOICES, Pair, Pairing
from src.metrics.problems import Problem
from src.metrics.scoring import FileScores, MetricSpec, VoiceScores, column_names, score_pair

NO_MIX_NOTE = "no folder of mixtures: improvements and input-SNR bands are left out; name it with mix=DIR"

# Worker processes take some seconds to start; so few mixtures are sooner done without them.
_FEW_PAIRS = 16

# Input SNR of a voice in dB, lower end included.
SNR_BANDS = ((-math.inf, -5.0), (-5.0, 0.0), (0.0, 5.0), (5.0, math.inf))


@dataclass(frozen=True)
class Statistic:
    """One metric over one subset of voices.

    Attributes:
        num_values: voices that have a value.
        mean: over these voices.
        median: over these voices.
        low, high: 95 % bootstrap interval of the mean.
    """

    num_values: int
    mean: float
    median: float
    low: float
    high: float


@dataclass
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        pairs: the mixtures, sorted by name.
        voices: scores of all voices that could be scored, in the same order.
        groups: label of each voice.
        columns: headings of the metrics.
        table: statistics by subset ("both voices", "s1", ...) and heading.
        problems: all that was wrong with single files.
        notes: what is worth knowing and no fault.
    """

    pairs: list[Pair]
    voices: list[VoiceScores]
    groups: list[str]
    columns: list[str]
    table: dict[str, dict[str, Statistic]]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def evaluate(
    pairing: Pairing,
    specs: list[MetricSpec],
    *,
    pit: bool = False,
    jobs: int = -1,
    grouping: Grouping | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Score all pairs and summarise.

    Args:
        pairing: what to score.
        specs: with which metrics.
        pit: best permutation of the estimates per mixture.
        jobs: worker processes; -1 is one a core (a handful of mixtures is scored without), 1 computes in this
            process.
        grouping: what is resampled together in the bootstrap; by mixture when absent.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: ``jobs`` is 0, or ``num_resamples`` is below 1.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples}: take 1 or more")
    if jobs == 0:
        raise ValueError("jobs=0: give the number of processes, or -1 for one a core")
    results = _score_all(pairing.pairs, specs, pit, jobs)
    voices = [voice for result in results for voice in result.voices]
    problems = pairing.problems + [problem for result in results for problem in result.problems]
    notes = [note for result in results for note in result.notes]
    if not pairing.has_mix:
        notes.insert(0, NO_MIX_NOTE)
    groups, unlabelled = _labels(voices, grouping or Grouping())
    columns = column_names(specs)

    def statistics(keep: Callable[[VoiceScores], bool]) -> dict[str, Statistic]:
        kept = [index for index, voice in enumerate(voices) if keep(voice)]
        return {
            column: statistic_of(
                [voices[index].values[column] for index in kept],
                [groups[index] for index in kept],
                num_resamples=num_resamples,
                seed=seed,
            )
            for column in columns
        }

    table = {"both voices": statistics(lambda voice: True)}
    for name in VOICES:
        table[name] = statistics(lambda voice, name=name: voice.voice == name)
    if pairing.has_mix:
        for low, high in SNR_BANDS:
            table[band_name(low, high)] = statistics(
                lambda voice, low=low, high=high: low <= voice.input_snr_db < high
            )
    return Evaluation(pairing.pairs, voices, groups, columns, table, problems + unlabelled, notes)


def band_name(low: float, high: float) -> str:
    """Heading of a band of input SNR."""
    if math.isinf(low):
        return f"input SNR below {high:g} dB"
    if math.isinf(high):
        return f"input SNR from {low:g} dB"
    return f"input SNR {low:g} to {high:g} dB"


def _score_all(pairs: list[Pair], specs: list[MetricSpec], pit: bool, jobs: int) -> list[FileScores]:
    """Results in the order of the pairs."""
    results: list[FileScores | None] = [None] * len(pairs)
    if jobs < 0 and len(pairs) < _FEW_PAIRS:
        jobs = 1
    workers = Parallel(n_jobs=jobs, return_as="generator_unordered")
    scored = workers(
        delayed(_score_indexed)(index, pair, specs, pit, in_worker=jobs != 1)
        for index, pair in enumerate(pairs)
    )
    # A worker that is killed (out of memory) takes the others with it; what is finished stays.
    with contextlib.suppress(TerminatedWorkerError):
        for index, result in _progress(scored, len(pairs)):
            results[index] = result
    return [result if result is not None else _died(pair) for result, pair in zip(results, pairs)]


def _score_indexed(
    index: int, pair: Pair, specs: list[MetricSpec], pit: bool, in_worker: bool
) -> tuple[int, FileScores]:
    if in_worker:
        # One process a core is faster than many threads in each.
        torch.set_num_threads(1)
    return index, score_pair(pair, specs, pit=pit)


def _progress(scored: Iterable, total: int) -> Iterable:
    return tqdm(scored, total=total, desc="metrics", unit="mix", disable=None)


def _died(pair: Pair) -> FileScores:
    detail = (
        "a worker process was killed before this mixture was scored (out of memory?); try a smaller jobs="
    )
    return FileScores(problems=[Problem(pair.name, "file", "not scored", detail)])


def _labels(voices: list[VoiceScores], grouping: Grouping) -> tuple[list[str], list[Problem]]:
    """Groups of voices; a voice that has none becomes a group of its own mixture, and a problem."""
    groups, problems = [], []
    for voice in voices:
        try:
            groups.append(grouping.label(voice.name, voice.voice))
        except GroupingError as error:
            groups.append(voice.name)
            detail = f"{error}; its mixture is taken as its group"
            problems.append(Problem(voice.name, voice.voice, "no group", detail))
    return groups, problems


def statistic_of(
    values: Sequence[float], groups: Sequence[str], *, num_resamples: int = 2000, seed: int = 0
) -> Statistic:
    """Mean, median and interval of one value a voice; NaN ones are left out.

    Args:
        values: of the voices.
        groups: label of each; what shares one is resampled together.
        num_resamples, seed: of the bootstrap.
    """
    values = np.asarray(values, dtype=np.float64)
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return Statistic(0, math.nan, math.nan, math.nan, math.nan)
    low, high = bootstrap_interval(values, groups, num_resamples=num_resamples, seed=seed)
    return Statistic(len(defined), float(defined.mean()), float(np.median(defined)), low, high)
