"""A minute in windows scores like a minute at once, with a separator that has learnt to separate."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from pipeline.default_weights import default_weights
from pipeline.extract import precompute
from pipeline.frontend import FrontEnd
from pipeline.synthetic import write_corpus
from pipeline.synthetic.corpus import render_utterance
from src.utils.io_utils import ROOT_PATH

NETWORK = "sync_light"
SECONDS = 60


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A separator after some hundred steps, and a minute of two speakers it has not heard."""
    folder = tmp_path_factory.mktemp("long")
    root = write_corpus(folder / "corpus", train=60, val=3, test=0, jobs=1)
    front_end = FrontEnd(network=NETWORK, weights=default_weights(NETWORK), device="cpu")
    precompute(root, folder / "mouths.h5", front_end, workers=0)
    run(
        "train.py", "model=tiny", "model.num_bands=16", "model.channels=24", f"datasets.root={root}",
        f"cache={folder / 'mouths.h5'}", f"trainer.save_dir={folder}", "run_name=run", "trainer.n_epochs=1",
        "trainer.epoch_len=110", "trainer.ema_decay=0.95", "scheduler.warmup_steps=10", "optimizer.lr=4e-3",
        "trainer.device=cpu", "dataloader.num_workers=0", "metrics=si_snr_only", "trainer.log_examples=0",
    )  # fmt: skip
    voices = []
    for number, name in enumerate(("a", "b")):
        audio, mouth = render_utterance(speaker_seed=9000 + number, utterance_seed=1, seconds=SECONDS)
        voices.append(0.5 * audio)
        (folder / "data/mouths").mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"data/mouths/{name}.npz", data=mouth)
    for name, wave in (("s1", voices[0]), ("s2", voices[1]), ("mix", voices[0] + voices[1])):
        (folder / "data/audio" / name).mkdir(parents=True)
        soundfile.write(folder / f"data/audio/{name}/a_b.wav", wave, 16_000, subtype="FLOAT")
    return folder


def run(script, *options):
    done = subprocess.run(
        [sys.executable, str(ROOT_PATH / script), *options], cwd=ROOT_PATH, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def si_snr_db(work, name, lips, window):
    """Mean over both voices, in the better order where no lips give one."""
    out = work / f"{name}_{lips}"
    run(
        "inference.py", f"root={work / 'data'}", f"save_path={out}", f"checkpoint={work / 'run/last.pt'}",
        f"inferencer.lips={lips}", f"inferencer.window_s={window}",
        "metrics.inference=[]", "device=cpu",
    )  # fmt: skip
    estimates, truths = (
        [soundfile.read(folder / voice / "a_b.wav")[0] for voice in ("s1", "s2")]
        for folder in (out, work / "data/audio")
    )
    scores = np.array([[si_snr(e, t) for t in truths] for e in estimates])
    straight, crossed = np.diag(scores).mean(), np.diag(scores[::-1]).mean()
    return straight if lips == "given" else max(straight, crossed)


def si_snr(estimate, target):
    estimate, target = estimate - estimate.mean(), target - target.mean()
    part = estimate @ target / (target @ target) * target
    return 10 * np.log10(part @ part / ((estimate - part) @ (estimate - part)))


@pytest.mark.parametrize("lips", ["given", "none"])
def test_windows_score_like_the_whole(work, lips):
    whole = si_snr_db(work, "whole", lips, "null")
    windows = si_snr_db(work, "windows", lips, 8)
    print(f"lips {lips}: whole {whole:.2f} dB, windows {windows:.2f} dB")
    if lips == "given":
        assert whole > 3, f"{whole:.1f} dB: it has not learnt to separate, so this would show nothing"
    assert windows > whole - 0.2
