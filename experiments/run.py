"""Train and score the rows of an experiment, each once; what was stopped goes on where it was.

    python experiments/run.py experiments/ablations.yaml --root DIR --cache FILE [--only ROW ...] [--seeds 1 2 3]

A row is a training with some options of `train.py`, then `inference.py` on the test speakers with lips as given,
exchanged and without, and `calc_metrics.py`. Results are appended to `experiments/results/<experiment>.csv`, one line a
row, seed, use of lips and speaker; `experiments/draw.py` makes the tables of them.
"""

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.script_config import quoted  # noqa: E402
from src.trainer.checkpoint import load_checkpoint  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("row", "seed", "lips", "speaker", "voices", "si_snri_db", "steps", "mixtures", "device")


@dataclass(frozen=True)
class Job:
    """One training and what is heard of it."""

    row: str
    seed: int
    options: list[str]
    uses: list[str]


def jobs(experiment: dict, only: list[str], seeds: list[int]) -> Iterator[Job]:
    """Rows of an experiment times seeds.

    Raises:
        SystemExit: a row that does not exist.
    """
    rows = experiment["rows"]
    if unknown := set(only) - set(rows):
        sys.exit(f"no row {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    for seed in seeds:
        for name, row in rows.items():
            if not only or name in only:
                options = [*experiment["common"], *row.get("options", [])]
                yield Job(name, seed, options, row.get("lips", ["given", "swapped", "none"]))


def call(script: str, *options: str) -> None:
    """Run one of the project's scripts; its output goes to this script's.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, script, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def run(job: Job, root: Path, cache: Path | None, saved: Path) -> list[dict[str, object]]:
    """Train and score one job; returns its lines of the results."""
    name = f"{job.row}.seed{job.seed}"
    folder = saved / name
    resume = ["trainer.resume_from=last.pt"] if (folder / "last.pt").is_file() else []
    cached = f"cache={quoted(cache) if cache else 'null'}"
    data = [f"datasets.root={quoted(root)}", cached]
    where = [f"run_name={name}", f"trainer.save_dir={quoted(saved)}", f"seed={job.seed}"]
    call("train.py", *where, *data, *job.options, *resume)
    checkpoint = load_checkpoint(folder / "last.pt")
    settings = checkpoint["config"]
    mixtures = checkpoint["step"] * settings["dataloader"]["batch_size"] * settings["trainer"]["accumulation"]
    lines = []
    for use in job.uses:
        out = folder / f"separated_{use}"
        call(
            "inference.py", f"root={quoted(root)}", "part=test", f"save_path={quoted(out)}",
            f"checkpoint={quoted(folder / 'last.pt')}", cached, f"inferencer.lips={use}", "metrics.inference=[]",
            "inferencer.shifts=1",
        )  # fmt: skip
        call(
            "calc_metrics.py", f"pred={quoted(out)}", f"truth={quoted(root / 'audio/test')}",
            f"groups={quoted(root / 'utterances.csv')}",
            "only=[SI-SNR]", f"pit={str(use == 'none').lower()}",
        )  # fmt: skip
        for speaker, values in by_speaker(out / "metrics.csv").items():
            lines.append(
                {
                    "row": job.row,
                    "seed": job.seed,
                    "lips": use,
                    "speaker": speaker,
                    "voices": len(values),
                    "si_snri_db": f"{sum(values) / len(values):.4f}",
                    "steps": checkpoint["step"],
                    "mixtures": mixtures,
                    "device": settings["trainer"]["device"],
                }
            )
    return lines


def by_speaker(path: Path) -> dict[str, list[float]]:
    """SI-SNRi of every scored voice of a `metrics.csv`, by speaker."""
    values = defaultdict(list)
    with path.open(newline="") as stream:
        for line in csv.DictReader(stream):
            if line["SI-SNRi"]:
                values[line["group"]].append(float(line["SI-SNRi"]))
    return dict(sorted(values.items()))


def finished(path: Path) -> set[tuple[str, int]]:
    """Rows and seeds that have results."""
    if not path.is_file():
        return set()
    with path.open(newline="") as stream:
        return {(line["row"], int(line["seed"])) for line in csv.DictReader(stream)}


def append(path: Path, lines: list[dict[str, object]]) -> None:
    """Add the lines of one job, in a single write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.is_file()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("experiment", type=Path, help="YAML file: common options, seeds and rows")
    parser.add_argument(
        "--root", type=Path, required=True, help="data set with audio/{train,val,test}, utterances.csv"
    )
    parser.add_argument("--cache", type=Path, help="its lip embeddings (precompute_visual.py)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--saved", type=Path, default=ROOT / "saved/experiments", help="where the runs go")
    options = parser.parse_args()
    experiment = OmegaConf.to_container(OmegaConf.load(options.experiment))
    results = RESULTS / f"{options.experiment.stem}.csv"
    saved = options.saved.absolute() / options.experiment.stem
    cache = options.cache.absolute() if options.cache else None
    for job in jobs(experiment, options.only, options.seeds or experiment["seeds"]):
        if (job.row, job.seed) in finished(results):
            continue
        print(f"{job.row}, seed {job.seed}", flush=True)
        append(results, run(job, options.root.absolute(), cache, saved))


if __name__ == "__main__":
    main()
