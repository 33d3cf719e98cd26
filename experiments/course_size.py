"""A dry run at the size of the course's data set: 28,000 mixes and 19,434 mouths, all of them very short.

    python experiments/course_size.py OUT

makes them under OUT (noise, 0.24 s each; 1 GB), runs `precompute_visual.py` (twice), `train.py` (some steps and a whole
validation), `inference.py` on the test part and `calc_metrics.py`, and prints time and peak memory of each. Nothing is
learnt; what holds or breaks at that size is files, indices and caches.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RATE_HZ, FRAMES = 16_000, 6
SIZES = {"train": 20_000, "val": 5_000, "test": 3_000}
MOUTHS = 19_434


def write_data(out: Path, share: float) -> None:
    """Mixes, truths and mouths; nothing is written that is there already."""
    rng = np.random.default_rng(0)
    ids = [f"{number:011d}" for number in rng.choice(10**9, round(MOUTHS * share), replace=False)]
    (out / "mouths").mkdir(parents=True, exist_ok=True)
    for name in tqdm(ids, desc="mouths", disable=None):
        path = out / "mouths" / f"{name}.npz"
        if not path.exists():
            np.savez_compressed(
                path, data=rng.integers(0, 256, (1, 96, 96), dtype=np.uint8).repeat(FRAMES, 0)
            )
    bounds = np.cumsum([0, *(round(len(ids) * part / sum(SIZES.values())) for part in SIZES.values())])
    for (part, count), low, high in zip(SIZES.items(), bounds, bounds[1:]):
        for folder in ("mix", "s1", "s2"):
            (out / "audio" / part / folder).mkdir(parents=True, exist_ok=True)
        names = ids[low:high]
        for number in tqdm(range(round(count * share)), desc=part, disable=None):
            first = number % len(names)
            second = (first + 1 + number // len(names)) % len(names)
            name = f"{names[first]}_{names[second]}.wav"
            voices = rng.uniform(-0.4, 0.4, (2, 640 * FRAMES)).astype(np.float32)
            for folder, wave in (("s1", voices[0]), ("s2", voices[1]), ("mix", voices.sum(0))):
                sf.write(out / "audio" / part / folder / name, wave, RATE_HZ, subtype="PCM_16")


def measured(what: str, *command: str) -> str:
    """Run one command; a row of the table.

    Raises:
        SystemExit: it failed.
    """
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"failed: {' '.join(command)}")
    return f"| {what} | {seconds:.0f} s | {usage.ru_maxrss / 2**20:.1f} GiB |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for data, caches and results")
    parser.add_argument("--share", type=float, default=1.0, help="of the size, to try the script out")
    options = parser.parse_args()
    out = options.out.resolve()
    data, cache, separated = out / "data", out / "mouths.h5", out / "separated"
    write_data(data, options.share)
    precompute = ("precompute_visual.py", "--root", str(data), "--out", str(cache))
    train = (
        "train.py", f"datasets.root={data}", f"cache={cache}", f"trainer.save_dir={out}", "run_name=run", "model=tiny",
        "trainer.n_epochs=1", "trainer.epoch_len=20", "trainer.override=true", "datasets.train.segment_s=0.24",
        "trainer.log_examples=0", "scheduler.warmup_steps=5", "metrics=si_snr_only",
    )  # fmt: skip
    rows = [
        measured("`precompute_visual.py`", *precompute),
        measured("the same again", *precompute),
        measured("`train.py`: 20 steps, all of `val`", *train),
        measured("the same, voices and lips kept in memory", *train, "datasets.train.preload=true"),
        measured(
            "`inference.py` on `test`",
            "inference.py", f"root={data}", "part=test", f"save_path={separated}", f"cache={cache}",
            f"checkpoint={out / 'run/last.pt'}", "metrics.inference=[]",
        ),
        measured(
            "`calc_metrics.py`, SI-SNR",
            "calc_metrics.py", f"pred={separated}", f"truth={data / 'audio/test'}", "only=[SI-SNR]",
        ),
    ]  # fmt: skip
    print("| step | time | peak memory |", "|---|---|---|", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
