"""One self-contained page that shows what a separator did: `python -m src.logger.report --pred OUT --root DATA`.

Pictures, players and scores of some mixtures, and the table of all. Exit code 1 when the mean SI-SNRi is below
``--require-si-snri`` or unknown, 2 when the command itself is wrong.
"""

import argparse
import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audio_io import SAMPLE_RATE_HZ, AudioError, read_audio
from src.logger.report_html import MixtureSection, Page, Track, render
from src.utils.io_utils import read_json, write_atomically

VOICES = ("s1", "s2")
HEADLINE_METRIC = "SI-SNRi"
# As calc_metrics.py heads the statistics over both voices.
ALL_VOICES = "both voices"
_AUDIO_EXTENSIONS = (".wav", ".flac", ".mp3")
# Keeps a page of twelve mixtures under 10 MB.
MAX_SECONDS = 3.5
# Columns of metrics.csv that are no scores.
_KEYS = ("name", "voice", "estimate", "group", "input_snr_db", "duration_s", "problems")

Summary = Mapping[str, Any]


class ReportError(ValueError):
    """Something the report cannot do without is absent; the message says what was expected."""


def write_report(
    pred: Path,
    mix_dir: Path,
    out: Path,
    *,
    truth: Path | None = None,
    metrics: Path | None = None,
    summary: Path | None = None,
    swapped: Path | None = None,
    limit: int = 12,
    max_seconds: float = MAX_SECONDS,
    title: str = "Two voices separated by their lips",
) -> Path:
    """Write the page.

    Args:
        pred: folder with the estimates in ``s1/`` and ``s2/``.
        mix_dir: folder of the mixtures.
        out: the HTML file.
        truth: folder with the true voices in ``s1/`` and ``s2/``; None or absent files are left out.
        metrics: ``metrics.csv`` of calc_metrics.py.
        summary: ``summary.json`` of calc_metrics.py.
        swapped: the same of a run whose two mouths were exchanged.
        limit: mixtures shown, spread evenly over all by name.
        max_seconds: longest part of a mixture that is shown and played, which bounds the size of the page.

    Raises:
        ReportError: no estimate belongs to any mixture, or a score file is none.
    """
    mixes, estimates = _by_stem(mix_dir), {voice: _by_stem(pred / voice) for voice in VOICES}
    truths = {voice: _by_stem(truth / voice) if truth is not None else {} for voice in VOICES}
    names = sorted(name for name in mixes if any(name in files for files in estimates.values()))
    if not names:
        raise ReportError(
            f"no file in {pred}/s1 or {pred}/s2 is named as a mixture in {mix_dir}; check --pred, --root and --mix-dir"
        )
    shown = _spread(names, limit)
    rows = _read_metrics(metrics) if metrics is not None else []
    sections = [
        _section(name, mixes[name], _of(name, estimates), _of(name, truths), rows, max_seconds)
        for name in shown
    ]
    facts = {
        "Estimates": str(pred),
        "Mixtures": f"{mix_dir} ({len(names)} separated, {len(shown)} shown below)",
        "Truth": str(truth) if any(truths.values()) else "none given, so there are no scores",
    }
    tables = {}
    result = read_summary(summary) if summary is not None else None
    headline = "No truth was scored."
    if result is not None:
        facts["Scored"] = f"{result['num_voices_scored']} voices of {result['num_mixtures']} mixtures"
        if "num_groups" in result:
            by = result.get("settings", {}).get("group_by", "group")
            facts["Intervals"] = (
                f"95 %, of the mean, by bootstrap over {result['num_groups']} groups (by {by})"
            )
        if result.get("problem_counts"):
            facts["Problems"] = ", ".join(
                f"{kind}: {count}" for kind, count in result["problem_counts"].items()
            )
        headline = headline_of(result)
        tables["All mixtures, both voices"] = _score_table(result)
    if swapped is not None:
        tables["The same with the two mouths exchanged"] = _score_table(read_summary(swapped))
    page = Page(title=title, headline=headline, facts=facts, tables=tables, mixtures=sections)
    content = render(page).encode()
    write_atomically(out, lambda stream: stream.write(content))
    return out


def read_summary(path: Path) -> Summary:
    """Content of a ``summary.json``.

    Raises:
        ReportError: absent, or not written by calc_metrics.py.
    """
    try:
        content = read_json(path)
        content["metrics"][ALL_VOICES]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{path}: no summary of calc_metrics.py ({error!r}); run calc_metrics.py first"
        ) from error
    return content


def headline_of(summary: Summary) -> str:
    """The improvement in one line."""
    statistic = _statistic(summary, HEADLINE_METRIC)
    if statistic is None:
        return f"{HEADLINE_METRIC} could not be computed"
    text = f"{HEADLINE_METRIC} {statistic['mean']:+.2f} dB"
    low, high = statistic["interval_95"]
    return text if low is None else f"{text}, 95 % interval {low:.2f} to {high:.2f} dB"


def check_improvement(summary: Summary, required_db: float) -> str | None:
    """What is wrong with the mean improvement, or None where it is at least ``required_db``."""
    statistic = _statistic(summary, HEADLINE_METRIC)
    if statistic is None:
        return (
            f"{HEADLINE_METRIC} could not be computed, but {required_db:g} dB are required; see summary.json"
        )
    if statistic["mean"] < required_db:
        return (
            f"the mean {HEADLINE_METRIC} of {statistic['mean']:.2f} dB is below the {required_db:g} dB required: "
            "the estimates are not clearly better than the mixture"
        )
    return None


def find_mixtures(root: Path) -> Path:
    """The folder of mixtures in a data directory.

    Raises:
        ReportError: none of the usual places holds one.
    """
    places = [root / "audio" / "mix", root / "audio" / "test" / "mix", root / "mix"]
    for place in places:
        if place.is_dir():
            return place
    raise ReportError(
        f"--root {root}: none of {', '.join(map(str, places))} exists; name the folder with --mix-dir"
    )


def _section(
    name: str,
    mix: Path,
    estimates: Mapping[str, Path],
    truths: Mapping[str, Path],
    rows: Sequence[Mapping[str, str]],
    max_seconds: float,
) -> MixtureSection:
    notes: list[str] = []

    def tracks(role: str, files: Mapping[str, Path | None]) -> list[Track]:
        found = []
        for title, path in files.items():
            if path is None:
                continue
            try:
                audio = read_audio(path, SAMPLE_RATE_HZ).numpy()
            except AudioError as error:
                notes.append(str(error))
                continue
            if len(audio) > max_seconds * SAMPLE_RATE_HZ:
                note = f"The first {max_seconds:g} s of {len(audio) / SAMPLE_RATE_HZ:.1f} s are shown and played."
                notes.extend([note] if note not in notes else [])
                audio = audio[: round(max_seconds * SAMPLE_RATE_HZ)]
            found.append(Track(title, role, np.ascontiguousarray(audio), SAMPLE_RATE_HZ))
        return found

    columns = [tracks("mix", {"Mixture": mix})]
    for number, voice in enumerate(VOICES, start=1):
        files = {
            f"Voice {number}, estimate": estimates.get(voice),
            f"Voice {number}, truth": truths.get(voice),
        }
        columns.append(tracks(voice, files))
    return MixtureSection(name, columns, _mixture_table(name, rows), notes)


def _mixture_table(name: str, rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Scores of one mixture: a line per metric, a column per voice."""
    own = [row for row in rows if row["name"] == name]
    if not any(row[key] for row in own for key in row if key not in _KEYS):
        return []
    table = [["", *(_voice_name(row["voice"]) for row in own)]]
    if any(row.get("input_snr_db") for row in own):
        table.append(["input SNR, dB", *(_number(row["input_snr_db"], 2) for row in own)])
    if any(row.get("estimate") not in ("", None, row["voice"]) for row in own):  # PIT exchanged the two
        table.append(["scored estimate", *(_voice_name(row["estimate"]) for row in own)])
    for metric in (key for key in own[0] if key not in _KEYS):
        table.append([_with_unit(metric), *(_number(row[metric], _digits(metric)) for row in own)])
    return table


def _voice_name(folder: str) -> str:
    return f"voice {VOICES.index(folder) + 1}" if folder in VOICES else "–"


def _score_table(summary: Summary) -> list[list[str]]:
    table = [["metric", "mean", "95 % interval", "median", "voices"]]
    for metric, statistic in summary["metrics"][ALL_VOICES].items():
        digits = _digits(metric)
        low, high = (_number(value, digits) for value in statistic["interval_95"])
        table.append(
            [
                _with_unit(metric),
                _number(statistic["mean"], digits),
                f"{low} to {high}" if statistic["interval_95"][0] is not None else "–",
                _number(statistic["median"], digits),
                str(statistic["n"]),
            ]
        )
    return table


def _statistic(summary: Summary, metric: str) -> Mapping[str, Any] | None:
    statistic = summary["metrics"][ALL_VOICES].get(metric)
    return statistic if statistic is not None and statistic["mean"] is not None else None


def _read_metrics(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReportError(f"{path}: not readable ({error}); run calc_metrics.py first") from error
    if rows and not {"name", "voice"} <= rows[0].keys():
        raise ReportError(f"{path}: no columns name and voice; expected the metrics.csv of calc_metrics.py")
    return rows


def _number(value: str | float | None, digits: int) -> str:
    if value is None or value == "" or math.isnan(float(value)):
        return "–"
    return f"{float(value):.{digits}f}".replace("-", "−")


def _in_db(metric: str) -> bool:
    return "SNR" in metric or "SDR" in metric


def _with_unit(metric: str) -> str:
    return f"{metric}, dB" if _in_db(metric) else metric


def _digits(metric: str) -> int:
    return 2 if _in_db(metric) else 3


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _AUDIO_EXTENSIONS}


def _of(name: str, files: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    return {voice: by_stem[name] for voice, by_stem in files.items() if name in by_stem}


def _spread(names: Sequence[str], limit: int) -> list[str]:
    """``limit`` of the names in even steps, first and last included."""
    if len(names) <= limit:
        return list(names)
    return [names[index] for index in np.linspace(0, len(names) - 1, limit).round().astype(int)]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src.logger.report", description="Show what a separator did."
    )
    parser.add_argument("--pred", type=Path, required=True, help="folder with the estimates in s1/ and s2/")
    parser.add_argument("--root", type=Path, help="data directory with audio/mix, audio/test/mix or mix")
    parser.add_argument("--mix-dir", type=Path, help="folder of the mixtures, instead of --root")
    parser.add_argument("--truth", type=Path, help="folder with s1/ and s2/; default: beside the mixtures")
    parser.add_argument("--metrics", type=Path, help="metrics.csv of calc_metrics.py")
    parser.add_argument("--summary", type=Path, help="summary.json of calc_metrics.py")
    parser.add_argument("--swapped", type=Path, help="summary.json of a run with the two mouths exchanged")
    parser.add_argument(
        "--out", type=Path, default=Path("saved/demo/report.html"), help="the page (%(default)s)"
    )
    parser.add_argument("--require-si-snri", type=float, metavar="DB", help="exit 1 when the mean is below")
    parser.add_argument("--limit", type=int, default=12, help="mixtures shown (%(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=MAX_SECONDS, help="longest part shown of a mixture (%(default)s)"
    )
    parser.add_argument("--title", default="Two voices separated by their lips", help="heading of the page")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, say the improvement, and judge it."""
    parser = _arguments()
    options = parser.parse_args(arguments)
    if (options.root is None) == (options.mix_dir is None):
        parser.error("give either --root or --mix-dir")
    if options.require_si_snri is not None and options.summary is None:
        parser.error("--require-si-snri needs --summary")
    if options.limit < 1 or options.max_seconds <= 0:
        parser.error("--limit and --max-seconds must be positive")
    try:
        mix_dir = options.mix_dir or find_mixtures(options.root)
        out = write_report(
            options.pred,
            mix_dir,
            options.out,
            truth=options.truth or mix_dir.parent,
            metrics=options.metrics,
            summary=options.summary,
            swapped=options.swapped,
            limit=options.limit,
            max_seconds=options.max_seconds,
            title=options.title,
        )
        print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
        if options.summary is None:
            return 0
        summary = read_summary(options.summary)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(headline_of(summary))
    if options.require_si_snri is not None:
        complaint = check_improvement(summary, options.require_si_snri)
        if complaint is not None:
            print(f"error: {complaint}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
