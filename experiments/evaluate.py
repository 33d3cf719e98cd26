"""What a separator is worth on speakers that it was not trained on, and what its lips do.

    python experiments/evaluate.py --checkpoint weights/small.safetensors --root DIR --cache FILE --out OUT

Separates `DIR/audio/test` with lips as given, exchanged, of one voice only, one frame late and early, and without;
scores both voices, with 95 % intervals over speakers (`DIR/utterances.csv`), and writes OUT/evaluation.md. Lips are
right in a mixture where the order of the two estimates is the better one of both. `--gap N` adds N training mixtures,
drawn at random; of those with two mouths, only the ones whose faces are of a corpus that the test has faces of
(`corpus` in the table, where it is told) stand beside the test's, since another corpus may be easier.
Mixtures without a second mouth have no lips at all in "second mouth only", and the order of their voices is chance:
what a missing mouth costs, in dB and in order, is told by the columns of the mixtures that have two. "Order unchecked"
is without the second look at the order of the voices (`inferencer.check_order`).
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.cores import usable_cores  # noqa: E402
from pipeline.script_config import quoted  # noqa: E402
from src.datasets.mixture import mixture_index  # noqa: E402
from src.metrics.evaluate import statistic_of  # noqa: E402
from src.metrics.report_table import plain  # noqa: E402

ALL_VOICES = "both voices"
METRICS = ["SI-SNR", "SI-SNRi", "SDRi", "PESQ-wb", "STOI"]
# name, options of inference.py, whether the better order of the voices is told by the truth, metrics
USES = [
    ("lips as given", [], False, None),
    ("lips as given, better order", [], True, ["SI-SNR"]),
    ("lips as given, one pass", ["inferencer.shifts=1"], False, ["SI-SNR"]),
    ("lips as given, order unchecked", ["inferencer.check_order=false"], False, ["SI-SNR"]),
    ("mouths exchanged", ["inferencer.lips=swapped"], False, ["SI-SNR"]),
    ("mouths exchanged, better order", ["inferencer.lips=swapped"], True, ["SI-SNR"]),
    ("first mouth only", ["inferencer.lips=first"], False, ["SI-SNR"]),
    (
        "first mouth only, order unchecked",
        ["inferencer.lips=first", "inferencer.check_order=false"],
        False,
        ["SI-SNR"],
    ),
    ("first mouth only, better order", ["inferencer.lips=first"], True, ["SI-SNR"]),
    ("second mouth only", ["inferencer.lips=second"], False, ["SI-SNR"]),
    (
        "second mouth only, order unchecked",
        ["inferencer.lips=second", "inferencer.check_order=false"],
        False,
        ["SI-SNR"],
    ),
    ("second mouth only, better order", ["inferencer.lips=second"], True, ["SI-SNR"]),
    ("lips a frame late", ["inferencer.lip_shift_frames=1"], False, ["SI-SNR"]),
    ("lips a frame early", ["inferencer.lip_shift_frames=-1"], False, ["SI-SNR"]),
    ("without lips, order as it comes", ["inferencer.lips=none"], False, ["SI-SNR"]),
    ("without lips, better order", ["inferencer.lips=none"], True, None),
]


def call(script: str, *options: str, partly: bool = False, **environment: str) -> None:
    """Run one of the project's scripts; `partly` takes no offence where it did not cover all files.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL if partly else None}
    command = [sys.executable, script, *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False, **quiet)
    if done.returncode not in ((0, 3) if partly else (0,)):
        raise subprocess.CalledProcessError(done.returncode, [script, *options])


def evaluate(options: argparse.Namespace, part: str, uses: list) -> list[str]:
    """Rows of the table for one part of the data."""
    rows = []
    mixes, _ = mixture_index(options.root, part)
    two_mouths = alike(mixes, options.root)
    separated = separate(options, part, list(dict.fromkeys(tuple(how) for _, how, _, _ in uses)))
    for name, how, pit, only in uses:
        pred = separated[tuple(how)]
        call(
            "calc_metrics.py", f"pred={quoted(pred)}", f"truth={quoted(options.root / 'audio' / part)}",
            f"groups={quoted(options.root / 'utterances.csv')}", f"pit={str(pit).lower()}",
            *([f"only=[{','.join(only)}]"] if only else []), partly=part == "train",
        )  # fmt: skip
        metrics = json.loads((pred / "summary.json").read_text())["metrics"][ALL_VOICES]
        kept = [order_kept(pred / "metrics.csv", names) if pit else None for names in (None, two_mouths)]
        cells = [cell(metrics.get(metric), metric) for metric in METRICS]
        cells.append(cell(improvement(pred / "metrics.csv", two_mouths), "SI-SNRi"))
        cells += ["" if share is None else f"{100 * share:.1f} %" for share in kept]
        rows.append(f"| {part}: {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def alike(mixes: list[dict], root: Path) -> set[str]:
    """Names of the mixtures of two mouths whose speakers are of corpora that the test has faces of."""
    with (root / "utterances.csv").open(newline="") as stream:
        corpora = {line["id"]: line.get("corpus") for line in csv.DictReader(stream)}

    def of_two_mouths(index: list[dict]) -> dict[str, set[str | None]]:
        return {
            mix["utt_id"]: {corpora.get(mix["id1"]), corpora.get(mix["id2"])}
            for mix in index
            if mix["mouth1"] and mix["mouth2"]
        }

    tested = set().union(*of_two_mouths(mixture_index(root, "test")[0]).values())
    return {name for name, pair in of_two_mouths(mixes).items() if pair <= tested}


def separate(
    options: argparse.Namespace, part: str, ways: list[tuple[str, ...]]
) -> dict[tuple[str, ...], Path]:
    """Where the estimates of each way to separate lie; one way a core, which is quicker than all cores for each."""
    limit = []
    if part == "train":  # names are in the order of speakers: the first ones would be those of few
        limit = [f"datasets.custom.limit={options.gap}", "+datasets.custom.shuffle_index=true"]
    separated = {how: options.out / f"{part}_{number}" for number, how in enumerate(ways)}

    def one(how: tuple[str, ...]) -> None:
        call(
            "inference.py", f"root={quoted(options.root)}", f"part={part}", f"save_path={quoted(separated[how])}",
            f"checkpoint={quoted(options.checkpoint)}", f"cache={quoted(options.cache) if options.cache else 'null'}",
            "metrics.inference=[]", *how,
            *limit, OMP_NUM_THREADS="1",
        )  # fmt: skip

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(one, ways))
    return separated


def cell(measured: dict | None, metric: str) -> str:
    """Mean and interval."""
    if not measured or measured["mean"] is None:
        return ""
    digits = 3 if metric == "STOI" else 2
    low, high = measured["interval_95"]
    interval = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{measured['mean']:.{digits}f}{interval}"


def order_kept(path: Path, names: set[str] | None = None) -> float | None:
    """Share of mixtures, all or those named, whose estimates come in the better order; None where there are none."""
    with path.open(newline="") as stream:
        first = [line for line in csv.DictReader(stream) if line["voice"] == "s1" and line["SI-SNRi"]]
    kept = [line["estimate"] == line["voice"] for line in first if names is None or line["name"] in names]
    return sum(kept) / len(kept) if kept else None


def improvement(path: Path, names: set[str]) -> dict[str, object]:
    """Mean SI-SNRi of the voices of some mixtures and its interval over speakers, as `calc_metrics.py` has them."""
    with path.open(newline="") as stream:
        lines = [line for line in csv.DictReader(stream) if line["name"] in names and line["SI-SNRi"]]
    return plain(statistic_of([float(line["SI-SNRi"]) for line in lines], [line["group"] for line in lines]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="data set in the course's layout")
    parser.add_argument("--cache", type=Path, help="lip embeddings; left out, they are computed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--gap", type=int, default=0, metavar="N", help="also N mixtures of the training speakers"
    )
    options = parser.parse_args()
    for name in ("checkpoint", "root", "out", "cache"):
        value = getattr(options, name)
        setattr(options, name, value and value.resolve())
    if options.out.is_dir() and any(options.out.iterdir()):
        parser.error(
            f"--out {options.out}: holds something already, which would be scored too; name another folder"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    rows = evaluate(options, "test", USES)
    if options.gap:
        rows += evaluate(
            options, "train", [(name, how, pit, ["SI-SNR"]) for name, how, pit, _ in (USES[0], USES[-1])]
        )
    columns = [*METRICS, "SI-SNRi, two mouths", "order kept", "order kept, two mouths"]
    head = f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}"
    (options.out / "evaluation.md").write_text("\n".join([head, *rows]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
