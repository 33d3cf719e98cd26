"""The command: exit codes, defaults, messages, and an interrupt, with real (seeded) weights."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import precompute_visual
from pipeline.cache import CacheWriter, FeatureCache
from pipeline.lipreading.seeded import draw_mouths, write_seeded
from tests.pipeline.fakes import FakeFrontEnd
from tests.pipeline.interrupts import heed_interrupts

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "lrw_snv05x_tcn1x"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_seeded(NETWORK, tmp_path_factory.mktemp("weights") / "w.pt")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "mouths"
    folder.mkdir(parents=True)
    for index, clip in enumerate(draw_mouths(np.random.default_rng(0), num_clips=4, num_frames=6)[0]):
        np.savez_compressed(folder / f"{index:04d}.npz", data=clip[: 3 + index])
    return tmp_path / "data"


def run(*arguments):
    return precompute_visual.main([str(argument) for argument in arguments])


def test_without_weights_it_says_how_to_get_them(data, capsys):
    assert run("--root", data, "--network", NETWORK) == 2
    message = capsys.readouterr().err
    assert f"python -m pipeline.download {NETWORK}" in message
    assert f"python -m pipeline.lipreading.seeded --network {NETWORK}" in message
    assert "not a lip reader" in message


def test_all_good_some_bad_and_good_again(tmp_path, data, weights, capsys, monkeypatch):
    monkeypatch.setattr(precompute_visual, "CACHES", tmp_path / "saved" / "cache")
    out = tmp_path / "saved" / "cache" / f"data.{NETWORK}.h5"
    assert run("--root", data, "--weights", weights, "--workers", 0) == 0
    assert "4 clips: 4 done, 0 reused, 0 stale, 0 failed" in capsys.readouterr().out
    assert FeatureCache(out).identity["network"] == NETWORK, "the weights file names its network"
    (data / "mouths" / "bad.npz").write_text("hello")
    assert run("--root", data, "--weights", weights, "--workers", 1) == 3
    shown = capsys.readouterr()
    assert "5 clips: 0 done, 4 reused, 0 stale, 1 failed" in shown.out
    assert f"{out}.failed.csv" in shown.err
    (row,) = csv.DictReader(Path(f"{out}.failed.csv").read_text().splitlines())
    assert row["id"] == "bad" and "not a whole npz" in row["reason"]
    (data / "mouths" / "bad.npz").unlink()
    assert run("--root", data, "--weights", weights, "--verify") == 0
    assert os.listdir(out.parent) == [out.name]
    assert os.listdir(data) == ["mouths"], "nothing is written into the user's data"


def test_shards_get_files_of_their_own(tmp_path, data, weights):
    for part in (1, 2):
        out = tmp_path / "c.h5"
        assert (
            run("--root", data, "--weights", weights, "--out", out, "--shard", f"{part}/2", "--workers", 0)
            == 0
        )
    assert FeatureCache(tmp_path / "c.shard-1-of-2.h5").ids() == ["0000", "0002"]
    assert FeatureCache(tmp_path / "c.shard-2-of-2.h5").ids() == ["0001", "0003"]


def test_features_of_the_temporal_trunk(tmp_path, data, weights):
    out = tmp_path / "c.h5"
    assert (
        run("--root", data, "--weights", weights, "--out", out, "--features", "tcn", "--batch-frames", 4) == 0
    )
    cache = FeatureCache(out)
    assert cache.identity["features"] == "tcn" and cache["0003"].shape == (6, 256)


def test_commands_that_cannot_run_are_errors_of_code_2(tmp_path, data, weights, capsys):
    (tmp_path / "text.pt").write_text("hello")
    out = ("--out", tmp_path / "c.h5")
    commands = {
        "no such|expected mouths": ("--root", tmp_path / "absent", "--weights", weights, *out),
        "text.pt": ("--root", data, "--weights", tmp_path / "text.pt", *out),
        "absent.pt": ("--root", data, "--weights", tmp_path / "absent.pt", *out),
        "lrw_x": ("--root", data, "--weights", weights, "--network", "lrw_x", *out),
        "lrw_resnet18_dctcn": ("--root", data, "--weights", weights, "--network", "lrw_resnet18_dctcn", *out),
        "batch_frames=0": ("--root", data, "--weights", weights, "--batch-frames", 0, *out),
        "workers=-1": ("--root", data, "--weights", weights, "--workers", -1, *out),
        "no such GPU": ("--root", data, "--weights", weights, "--device", "cuda:99", *out),
    }
    for word, command in commands.items():
        assert run(*command) == 2, word
        message = capsys.readouterr().err
        assert any(part in message for part in word.split("|")), message
    for wrong in (("--shard", "0/2"), ("--dtype", "int8"), ("--batch-frames", "many")):
        with pytest.raises(SystemExit) as caught:
            run("--root", data, "--weights", weights, *wrong)
        assert caught.value.code == 2
    assert not (tmp_path / "c.h5").exists()


def test_errors_while_running_have_code_1(tmp_path, data, weights, capsys):
    with CacheWriter(tmp_path / "c.h5", FakeFrontEnd().identity):
        assert run("--root", data, "--weights", weights, "--out", tmp_path / "c.h5") == 1
    assert "is being written by" in capsys.readouterr().err
    (tmp_path / "d.h5").write_text("hello")
    assert run("--root", data, "--weights", weights, "--out", tmp_path / "d.h5") == 1
    assert "cannot be read as a cache" in capsys.readouterr().err


def test_workers_need_not_import_pytorch():
    code = "import sys, precompute_visual; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_ctrl_c_is_answered_and_the_next_run_goes_on(tmp_path, weights):
    folder = tmp_path / "mouths"
    folder.mkdir()
    clip = draw_mouths(np.random.default_rng(0), num_clips=1, num_frames=25)[0][0]
    for index in range(80):
        np.savez(folder / f"{index:03d}.npz", data=np.roll(clip, index, axis=0))
    out = tmp_path / "c.h5"
    command = [
        sys.executable,
        ROOT / "precompute_visual.py",
        "--root",
        tmp_path,
        "--weights",
        weights,
        "--out",
        out,
    ]
    process = subprocess.Popen(
        [*command, "--batch-frames", "50"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not out.exists() or not len(FeatureCache(out)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "interrupted: every finished batch is kept" in message and "Traceback" not in message
    kept = len(FeatureCache(out))
    assert 0 < kept < 80
    assert run("--root", tmp_path, "--weights", weights, "--out", out) == 0
    assert len(FeatureCache(out)) == 80
