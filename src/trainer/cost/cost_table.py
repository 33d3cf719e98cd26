"""A cost report as a markdown table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.trainer.cost.memory import Peak
from src.trainer.cost.profile import CostReport, ModelProfile, StepCost, SweepPoint
from src.trainer.cost.size import Size
from src.trainer.cost.workload import BOTH, INFERENCE, LIP_READER, SEPARATOR, TRAINING
from src.utils.io_utils import write_atomically, write_json

MARKDOWN_NAME, JSON_NAME = "profile.md", "profile.json"
_ABSENT = "-"

_SIZE_HEADINGS = ("parameters, M", "trainable, M", "MACs, G", "flop_counter, G", "fp32, MB", "fp16, MB")
_INFERENCE_HEADINGS = ("inference, ms", "p10-p90", "real-time factor", "memory, MB")
_TRAINING_HEADINGS = ("training step, ms", "p10-p90", "memory, MB")
_LEGEND = """\
MACs: matmuls, attention, convolutions, recurrences and Fourier transforms of inference; flop_counter: what
torch.utils.flop_counter sees of them. Disk: safetensors. MB are 10^6 bytes. Time: median over {repeats} repeats taken
in turns, separator in fp32 (in convolutions TF32 where a GPU has it, as PyTorch chooses), decoding of files not
included. Real-time factor: inference over the duration of the audio. Memory: of one step in a fresh process; on a CPU
the rise of resident memory above model and input, without fragmentation of the heap, on a GPU all that PyTorch
allocated. Training: forward, loss, backward, optimizer; in part
"both" the lip reader runs in each step, in part "separator" embeddings come from the cache."""


def format_markdown(report: CostReport) -> str:
    """Hardware, one table of all models, parts and devices, the price of lips in the loop, and the sweep."""
    mixture = "one mixture" if report.batch_size == 1 else f"{report.batch_size} mixtures"
    hardware = report.hardware
    lines = [
        f"# Cost of {mixture} of {report.seconds:g} s with the videos of both speakers",
        "",
        f"CPU: {hardware.cpu}, threads: {hardware.threads}, cores: {hardware.cores}; GPU: {hardware.gpu or 'none'}; "
        f"PyTorch {hardware.torch}, Python {hardware.python}",
    ]
    if report.lip_precision:
        lines.append(f"Lip reader: {'; '.join(': '.join(item) for item in report.lip_precision.items())}")
    headings = (
        "model", "part", "device", *_SIZE_HEADINGS, *_INFERENCE_HEADINGS, *_TRAINING_HEADINGS
    )  # fmt: skip
    audio_s = report.seconds * report.batch_size
    rows = [
        [
            profile.name,
            part if part != LIP_READER else f"{part} ({profile.lip_reader})",
            device,
            *_size_cells(profile.sizes[part]),
            *_step_cells(steps[INFERENCE], audio_s),
            *_step_cells(steps.get(TRAINING)),
        ]
        for profile in report.profiles
        for device, parts in profile.costs.items()
        for part, steps in parts.items()
    ]
    lines += [
        "",
        *_table(headings, rows),
        "",
        _LEGEND.format(repeats=report.repeats),
        *_loop_lines(report.profiles),
    ]
    if report.sweep:
        lines += [
            "",
            "## Separator alone, inference, by length and batch size",
            "",
            *_sweep_table(report.sweep),
        ]
    return "\n".join(lines) + "\n"


def write_report(report: CostReport, folder: Path, settings: dict[str, Any]) -> None:
    """Write `profile.md` and `profile.json` (all raw figures, and what was asked for)."""
    text = format_markdown(report)
    write_atomically(folder / MARKDOWN_NAME, lambda stream: stream.write(text.encode()))
    write_json({"settings": settings, **asdict(report)}, folder / JSON_NAME)


def _loop_lines(profiles: Sequence[ModelProfile]) -> list[str]:
    lines = []
    for profile in profiles:
        for device, parts in profile.costs.items() if profile.lip_reader else ():
            loop, cached = (parts[part][TRAINING].time for part in (BOTH, SEPARATOR))
            if loop is None or cached is None:
                continue
            lines.append(
                f"- {profile.name} on {device}: a training step takes {_ms(cached.median_s)} ms with cached lips, "
                f"{_ms(loop.median_s)} ms with the lip reader in the loop: {profile.loop_ratio(device):.2f} times"
            )
    return ["", *lines] if lines else []


def _sweep_table(sweep: Sequence[SweepPoint]) -> list[str]:
    headings = ("model", "device", "length, s", "batch", "ms", "ms a second of audio", "memory, MB")
    rows = []
    for point in sweep:
        rate = None if point.time is None else point.time.median_s / (point.seconds * point.batch_size)
        time_s = None if point.time is None else point.time.median_s
        size = (f"{point.seconds:g}", str(point.batch_size))
        rows.append([point.model, point.device, *size, _ms(time_s), _ms(rate), _megabytes(point.memory)])
    return _table(headings, rows)


def _size_cells(size: Size) -> list[str]:
    return [
        f"{size.parameters / 1e6:.3f}",
        f"{size.trainable / 1e6:.3f}",
        f"{size.macs.total / 1e9:.3f}",
        f"{size.macs.flop_counter / 1e9:.3f}",
        f"{size.fp32_bytes / 1e6:.2f}",
        f"{size.fp16_bytes / 1e6:.2f}",
    ]


def _step_cells(cost: StepCost | None, audio_s: float | None = None) -> list[str]:
    """Time, its spread, the real-time factor where a duration is given, memory."""
    factor = 0 if audio_s is None else 1
    if cost is None:
        return [_ABSENT] * (3 + factor)
    time = cost.time
    if time is None:
        return [*[_ABSENT] * (2 + factor), _megabytes(cost.memory)]
    cells = [_ms(time.median_s), f"{_ms(time.p10_s)}-{_ms(time.p90_s)}"]
    if audio_s is not None:
        cells.append(f"{time.median_s / audio_s:.4f}")
    return [*cells, _megabytes(cost.memory)]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown, padded so that it can be read in a terminal too; numbers to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    numeric = [all(row[i] == _ABSENT or row[i][0].isdigit() for row in rows) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric)
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric)]
    return [line(headings), line(rule), *map(line, rows)]


def _ms(seconds: float | None) -> str:
    return _ABSENT if seconds is None else f"{seconds * 1e3:.1f}"


def _megabytes(peak: Peak | None) -> str:
    return _ABSENT if peak is None else f"{peak.step_bytes / 1e6:.1f}"
