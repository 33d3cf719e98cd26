"""An evaluation as a printed table, as ``metrics.csv`` and as ``summary.json``."""

import csv
import io
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from src.metrics.evaluate import Evaluation, Statistic
from src.metrics.pairing import VOICES
from src.metrics.problems import count_kinds
from src.utils.io_utils import write_atomically, write_json

CSV_NAME, JSON_NAME = "metrics.csv", "summary.json"
_LISTED = 20


def format_table(evaluation: Evaluation) -> str:
    """All statistics, one block a subset; last, how many voices the means leave out."""
    lines = []
    for subset, statistics in evaluation.table.items():
        lines += ["", f"{subset:<28}{'n':>6}{'mean':>9}{'95 % interval':>20}{'median':>9}"]
        for column, statistic in statistics.items():
            in_db = column.startswith(("SI-SNR", "SDR"))
            lines.append(f"  {column:<26}{_row(statistic, digits=2 if in_db else 3)}")
    voices = sum(len(pair.truths) for pair in evaluation.pairs)
    both = evaluation.table["both voices"]
    lacking = {column: voices - statistic.num_values for column, statistic in both.items()}
    counts = ", ".join(
        f"{column} {count}" for column, count in lacking.items() if 0 < count < voices
    )  # a column without any value says so itself
    if counts:
        lines += [
            "",
            f"NOT SCORED, of {voices} voices: {counts}. The means leave them out: compare them with no others.",
        ]
    return "\n".join(lines[1:])


def format_problems(evaluation: Evaluation, *, verbose: bool = False) -> str:
    """Counts by kind and the single cases, the first twenty of problems and of notes unless verbose."""
    lines = []
    if evaluation.problems:
        counts = ", ".join(f"{kind}: {count}" for kind, count in count_kinds(evaluation.problems).items())
        lines.append(f"{len(evaluation.problems)} problems ({counts})")
        cases = [f"  {p.name} {p.voice}: {p.kind}: {p.detail}" for p in evaluation.problems]
        lines += _first(cases, verbose)
    if evaluation.notes:
        lines.append(f"{len(evaluation.notes)} notes")
        lines += _first([f"  {note}" for note in evaluation.notes], verbose)
    return "\n".join(lines)


def plain(statistic: Statistic) -> dict[str, Any]:
    """A statistic as plain data; what has no value is None."""
    return {
        "n": statistic.num_values,
        "mean": _number(statistic.mean),
        "median": _number(statistic.median),
        "interval_95": [_number(statistic.low), _number(statistic.high)],
    }


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Statistics, problems and notes as plain data; what has no value is None."""
    return {
        "num_mixtures": len(evaluation.pairs),
        "num_voices_scored": len(evaluation.voices),
        "num_groups": len(set(evaluation.groups)),
        "metrics": {
            subset: {column: plain(statistic) for column, statistic in statistics.items()}
            for subset, statistics in evaluation.table.items()
        },
        "problem_counts": count_kinds(evaluation.problems),
        "problems": [
            {"name": p.name, "voice": p.voice, "kind": p.kind, "detail": p.detail}
            for p in evaluation.problems
        ],
        "notes": evaluation.notes,
    }


def write_report(evaluation: Evaluation, folder: Path, settings: dict[str, Any]) -> None:
    """Write ``metrics.csv`` and ``summary.json``.

    Args:
        evaluation: what to write.
        folder: where.
        settings: what was asked for, kept in the summary.
    """
    text = _csv_text(evaluation)
    write_atomically(folder / CSV_NAME, lambda stream: stream.write(text.encode(errors="backslashreplace")))
    write_json({"settings": settings, **summary(evaluation)}, folder / JSON_NAME)


def _csv_text(evaluation: Evaluation) -> str:
    """One row a mixture and voice, also for voices that could not be scored."""
    scored = {
        (voice.name, voice.voice): (voice, group)
        for voice, group in zip(evaluation.voices, evaluation.groups)
    }
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for problem in evaluation.problems:
        concerned = [problem.voice] if problem.voice in VOICES else VOICES
        for voice in concerned:
            kinds[problem.name, voice].append(problem.kind)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["name", "voice", "estimate", "group", "input_snr_db", "duration_s", *evaluation.columns, "problems"]
    )
    for pair in evaluation.pairs:
        for name in VOICES:
            voice, group = scored.get((pair.name, name), (None, ""))
            problems = "; ".join(kinds[pair.name, name])
            if voice is None:
                writer.writerow([pair.name, name, "", "", "", "", *[""] * len(evaluation.columns), problems])
                continue
            values = [_cell(voice.values[column]) for column in evaluation.columns]
            head = [
                pair.name,
                name,
                voice.estimate,
                group,
                _cell(voice.input_snr_db),
                f"{voice.duration_s:.4f}",
            ]
            writer.writerow([*head, *values, problems])
    return stream.getvalue()


def _row(statistic: Statistic, digits: int) -> str:
    def number(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.{digits}f}"

    interval = "-" if math.isnan(statistic.low) else f"[{number(statistic.low)}, {number(statistic.high)}]"
    return f"{statistic.num_values:>6}{number(statistic.mean):>9}{interval:>20}{number(statistic.median):>9}"


def _first(lines: list[str], verbose: bool) -> list[str]:
    if verbose or len(lines) <= _LISTED:
        return lines
    return [*lines[:_LISTED], f"  ... and {len(lines) - _LISTED} more: see {JSON_NAME}, or verbose=true"]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
