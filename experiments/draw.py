"""Draw the tables and plots of an experiment from its results: `python experiments/draw.py experiments/ablations.yaml`.

Writes `experiments/results/<experiment>.md` and `.png`; where the experiment names `sweeps` (rows that are one model at
several rates), also `_scores.csv` with each model's best, which `profile_model.py scores=` takes. Every difference is
paired: the same test speakers, separated by both rows, averaged over the seeds that both have; its mean is over voices,
as that of the scores, and its interval a bootstrap over the speakers, each with all its voices.
"""

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.metrics.bootstrap import bootstrap_interval  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Row:
    """Results of one row with one use of lips.

    Attributes:
        by_seed: {seed: {speaker: SI-SNRi in dB}}.
        voices: {speaker: number of voices scored}, the same for all seeds.
        mixtures: seen in training.
    """

    by_seed: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    voices: dict[str, int] = field(default_factory=dict)
    mixtures: int = 0

    def speakers(self, seeds: Iterable[int] | None = None) -> dict[str, float]:
        """SI-SNRi of every speaker, mean over all seeds or over some."""
        runs = [self.by_seed[seed] for seed in (self.by_seed if seeds is None else seeds)]
        return {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}

    def mean(self) -> float:
        """Mean over all voices, in dB."""
        scores = self.speakers()
        return sum(scores[name] * self.voices[name] for name in scores) / sum(self.voices.values())

    def seed_means(self) -> list[float]:
        """The same for every seed alone."""
        total = sum(self.voices.values())
        return [sum(run[name] * self.voices[name] for name in run) / total for run in self.by_seed.values()]


def read_results(path: Path) -> dict[tuple[str, str], Row]:
    """Results of an experiment by row and use of lips."""
    rows: dict[tuple[str, str], Row] = defaultdict(Row)
    with path.open(newline="") as stream:
        for line in csv.DictReader(stream):
            row = rows[line["row"], line["lips"]]
            row.by_seed[int(line["seed"])][line["speaker"]] = float(line["si_snri_db"])
            row.voices[line["speaker"]] = int(line["voices"])
            row.mixtures = int(line["mixtures"])
    return dict(rows)


def difference(row: Row, reference: Row) -> tuple[float, float, float] | None:
    """Mean difference over voices with its interval, in dB, over common seeds; None where there are none."""
    seeds = sorted(row.by_seed.keys() & reference.by_seed.keys())
    if not seeds:
        return None
    ours, theirs = row.speakers(seeds), reference.speakers(seeds)
    names = sorted(ours.keys() & theirs.keys())
    voices = [row.voices[name] for name in names]
    apart = np.repeat([ours[name] - theirs[name] for name in names], voices)
    return (float(apart.mean()), *bootstrap_interval(apart, np.repeat(names, voices)))


def table(experiment: dict, results: dict[tuple[str, str], Row]) -> str:
    """The results as markdown, in the order of the experiment's rows."""
    lines = [
        "| row | question | lips | seeds | mixtures seen | SI-SNRi dB (each seed) | against the reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, about in experiment["rows"].items():
        for lips in about.get("lips", ["given", "swapped", "none"]):
            if (name, lips) not in results:
                continue
            row = results[name, lips]
            seeds = ", ".join(f"{mean:+.2f}" for mean in row.seed_means())
            other = about.get("against", experiment["reference"])
            reference = results.get((other, lips))
            shown = ""
            if reference is not None and reference is not row and (apart := difference(row, reference)):
                mean, low, high = apart
                shown = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
                shown += "" if other == experiment["reference"] else f" to `{other}`"
            lines.append(
                f"| {name} | {about['asks']} | {lips} | {len(row.by_seed)} | {row.mixtures:,} | "
                f"{row.mean():+.2f} ({seeds}) | {shown} |"
            )
    return "\n".join(lines)


def best_of_sweeps(experiment: dict, results: dict[tuple[str, str], Row]) -> dict[str, float]:
    """SI-SNRi of every model of the experiment's `sweeps` by its best row, with the lips as given."""
    best = {}
    for model, rows in experiment["sweeps"].items():
        done = [results[row, "given"].mean() for row in rows if (row, "given") in results]
        if done:
            best[model] = max(done)
    return best


def write_scores(path: Path, scores: dict[str, float]) -> None:
    """As `profile_model.py` reads them."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows(
            [("model", "si_snri"), *((model, f"{score:.2f}") for model, score in scores.items())]
        )


def plot(experiment: dict, results: dict[tuple[str, str], Row], path: Path) -> None:
    """One dot a seed and a bar for the mean, by row and use of lips."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [key for name in experiment["rows"] for key in results if key[0] == name]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 + 0.3 * len(shown)), layout="constrained")
    colours = {
        "given": "tab:blue",
        "swapped": "tab:red",
        "first": "tab:green",
        "second": "tab:olive",
        "none": "tab:gray",
    }
    for place, key in enumerate(shown):
        means = results[key].seed_means()
        axes.barh(place, statistics.fmean(means), color=colours[key[1]], alpha=0.4)
        axes.plot(means, [place] * len(means), ".", color=colours[key[1]])
    axes.set_yticks(range(len(shown)), [f"{name}, lips {lips}" for name, lips in shown])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("SI-SNRi on unseen speakers, both voices, dB")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("experiment", type=Path)
    options = parser.parse_args()
    experiment = OmegaConf.to_container(OmegaConf.load(options.experiment))
    results = read_results(RESULTS / f"{options.experiment.stem}.csv")
    text = f"{experiment['about'].strip()}\n\n{table(experiment, results)}\n"
    (RESULTS / f"{options.experiment.stem}.md").write_text(text)
    plot(experiment, results, RESULTS / f"{options.experiment.stem}.png")
    if "sweeps" in experiment:
        write_scores(RESULTS / f"{options.experiment.stem}_scores.csv", best_of_sweeps(experiment, results))
    print(text)


if __name__ == "__main__":
    main()
