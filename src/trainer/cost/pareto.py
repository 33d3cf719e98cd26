"""Quality over cost: which models no other beats in both."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from src.trainer.cost.profile import CostReport
from src.trainer.cost.workload import INFERENCE
from src.utils.io_utils import write_atomically

PICTURE_NAME = "pareto.png"
SCORE_COLUMNS = ("model", "si_snri")


@dataclass(frozen=True)
class ScoredModel:
    """A point of the picture: SI-SNRi in dB over MACs and seconds of one inference, lip reader included."""

    name: str
    si_snri_db: float
    macs: int
    time_s: float


def read_scores(path: Path) -> dict[str, float]:
    """SI-SNRi in dB by model, from a CSV with the columns model and si_snri.

    Raises:
        ValueError: there is no such file, or columns or numbers are not as expected.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if missing := set(SCORE_COLUMNS) - set(reader.fieldnames or ()):
                raise ValueError(
                    f"scores={path}: no column {', '.join(sorted(missing))}; expected {','.join(SCORE_COLUMNS)}"
                )
            rows = list(reader)
    except OSError as error:
        raise ValueError(f"scores={path}: cannot be read ({error.strerror})") from error
    scores = {}
    for row in rows:
        try:
            scores[row["model"]] = float(row["si_snri"])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"scores={path}: si_snri={row['si_snri']} of {row['model']} is no number"
            ) from error
    return scores


def scored_models(report: CostReport, scores: Mapping[str, float]) -> list[ScoredModel]:
    """Models that have a score, with their cost on the first device, if they had room there."""
    points = []
    for profile in report.profiles:
        if profile.name in scores:
            time = next(iter(profile.costs.values()))[profile.whole][INFERENCE].time
            if time is not None:
                macs = profile.sizes[profile.whole].macs.total
                points.append(ScoredModel(profile.name, scores[profile.name], macs, time.median_s))
    return points


def draw_pareto(points: Sequence[ScoredModel], report: CostReport, path: Path) -> None:
    """SI-SNRi over MACs and over time; a line joins the models that no other beats in both."""
    device = next(iter(report.profiles[0].costs))
    where = f"the CPU, threads: {report.hardware.threads}" if device == "cpu" else report.hardware.gpu
    panels = (
        (f"GMACs of {report.seconds:g} s, lip reader included", [point.macs / 1e9 for point in points]),
        (f"ms for {report.seconds:g} s on {where}", [point.time_s * 1e3 for point in points]),
    )
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, costs) in zip(figure.subplots(1, 2, sharey=True), panels):
        scores = [point.si_snri_db for point in points]
        axes.scatter(costs, scores)
        front = pareto_front(costs, scores)
        axes.plot([costs[i] for i in front], [scores[i] for i in front], linestyle="--", linewidth=1)
        # Names above and below in turns: neighbours may cost about the same.
        for rank, (cost, point) in enumerate(sorted(zip(costs, points), key=lambda pair: pair[0])):
            axes.annotate(
                point.name,
                (cost, point.si_snri_db),
                xytext=(0, -14 if rank % 2 else 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set(xlabel=label, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.2)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("SI-SNRi, dB")
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=150))


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in cost and score, by rising cost."""
    front: list[int] = []
    best = -math.inf
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if scores[i] > best:
            front.append(i)
            best = scores[i]
    return front
