"""`python inference.py` on small directories: what a user sees, types and gets."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir

import inference
from pipeline.cache import CacheError
from pipeline.extract import precompute
from pipeline.frontend import FrontEnd
from pipeline.lipreading.seeded import write_seeded
from pipeline.lipreading.weights import file_digest
from src.model import BandSeparator
from src.trainer.checkpoint import CheckpointError, save_checkpoint
from src.trainer.lip_source import LipsError
from src.utils.io_utils import ROOT_PATH

NETWORK = "lrw_snv05x_tcn1x"
MODEL = {
    "num_bands": 12,
    "channels": 8,
    "shared_blocks": 1,
    "voice_blocks": 1,
    "anonymous_blocks": 0,
    "cue_channels": 8,
    "dilations": [1],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Weights of a front-end (random), checkpoints with and without lips, and a directory in the spec's layout."""
    folder = tmp_path_factory.mktemp("inference")
    for seed, name in enumerate(("front_end", "other")):
        write_seeded(NETWORK, folder / f"{name}.pt", seed=seed)
    torch.manual_seed(0)
    identity = FrontEnd(network=NETWORK, weights=folder / "front_end.pt", device="cpu").identity
    save_separator(folder / "av.pt", identity["dim"], identity)
    save_separator(folder / "audio.pt", 0, None)
    generator = np.random.default_rng(0)
    root = folder / "data"
    (root / "mouths").mkdir(parents=True)
    for name in ("01", "02", "03"):
        mouth = generator.integers(0, 255, (25, 96, 96), np.uint8)
        np.savez_compressed(root / "mouths" / f"{name}.npz", data=mouth)
    for name in ("01_02", "02_03", "03_99"):
        voices = generator.uniform(-0.3, 0.3, (2, 16_000))
        for voice, audio in (("s1", voices[0]), ("s2", voices[1]), ("mix", voices.sum(0))):
            (root / "audio" / voice).mkdir(parents=True, exist_ok=True)
            soundfile.write(root / f"audio/{voice}/{name}.wav", audio, 16_000)
    return folder


def save_separator(path, visual_dim, front_end):
    model = BandSeparator(visual_dim=visual_dim, **MODEL)
    for parameter in model.parameters():  # the decoder starts at zero, which would make all estimates halves
        torch.nn.init.normal_(parameter, std=0.3)
    config = {"model": {"_target_": "src.model.BandSeparator", "visual_dim": visual_dim, **MODEL}}
    content = {
        "arch": "BandSeparator",
        "epoch": 1,
        "step": 1,
        "state_dict": model.state_dict(),
        "ema": None,
        "optimizer": {},
        "lr_scheduler": None,
        "monitor_best": None,
        "config": config,
        "front_end": front_end,
        "rng": {},
    }
    save_checkpoint(path, content)


def run(*overrides):
    with initialize_config_dir(str(ROOT_PATH / "src/configs"), version_base=None):
        return inference.run(compose("inference", overrides=list(overrides)))


def run_quickly(*overrides):
    return run("metrics.inference=[]", "inferencer.jobs=1", "device=cpu", *overrides)


def command_line(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT_PATH / "inference.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def read(folder, name="01_02.wav"):
    return [soundfile.read(folder / voice / name, dtype="int16")[0].astype(int) for voice in ("s1", "s2")]


def tree(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")
    }


def test_whole_command_with_truth(work, tmp_path):
    before = tree(work / "data")
    done = command_line(
        f"root={work / 'data'}", f"save_path={tmp_path / 'out'}", f"checkpoint={work / 'av.pt'}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for shown in ("SI-SNRi", "SDRi", "PESQ", "STOI", "3 of 3 recordings", "real-time factor", "lips "):
        assert shown in done.stdout
    for name in ("01_02.wav", "02_03.wav", "03_99.wav"):
        mix = soundfile.read(work / "data/audio/mix" / name, dtype="int16")[0].astype(int)
        assert (sum(read(tmp_path / "out", name)) == mix).all()
    summary = json.loads((tmp_path / "out/inference.json").read_text())
    assert summary["parts"]["custom"]["separated"] == 3
    assert summary["front_end"]["weights_sha256"] and summary["checkpoint"]["sha256"]
    # Nothing appears in the user's data or beside the command.
    assert tree(work / "data") == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_mouth_that_has_changed_since_it_was_cached_is_embedded_anew(work, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data")
    front_end = FrontEnd(network=NETWORK, weights=work / "front_end.pt", device="cpu")
    precompute(tmp_path / "data", tmp_path / "lips.h5", front_end, workers=0)
    mouth = tmp_path / "data/mouths/01.npz"
    with np.load(mouth) as file:
        np.savez_compressed(mouth, data=file["data"][::-1])
    common = [f"root={tmp_path / 'data'}", f"checkpoint={work / 'av.pt'}"]
    run_quickly(*common, f"save_path={tmp_path / 'anew'}")
    run_quickly(*common, f"save_path={tmp_path / 'cached'}", f"cache={tmp_path / 'lips.h5'}")
    assert all(np.array_equal(*pair) for pair in zip(read(tmp_path / "anew"), read(tmp_path / "cached")))
    elsewhere = shutil.copy(work / "av.pt", tmp_path / "av.pt")
    with pytest.raises(LipsError, match="front-end's weights"):
        run_quickly(
            f"root={tmp_path / 'data'}", f"checkpoint={elsewhere}", f"weights={tmp_path / 'none.pt'}",
            f"save_path={tmp_path / 'c'}", f"cache={tmp_path / 'lips.h5'}",
        )  # fmt: skip


def test_bad_recording_ends_in_exit_code_3_and_its_name(work, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data", ignore=shutil.ignore_patterns("s1", "s2"))
    (tmp_path / "data/audio/mix/02_03.wav").write_bytes(b"RIFFnothing")
    done = command_line(
        "root=data", "save_path=out", f"checkpoint={work / 'av.pt'}", "device=cpu", cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert "1 failed" in done.stdout and "02_03.wav" in done.stdout and "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path / "out/s1")) == ["01_02.wav", "03_99.wav"]
    assert "SI-SNR" not in done.stdout  # no truth, and no option needed to say so
    assert f"checkpoint: {work / 'av.pt'}" in done.stdout and "device: cpu" in done.stdout
    assert "earlier run" not in done.stdout
    # What an earlier run made of a mixture that fails now is neither lost nor passed over.
    (tmp_path / "out/s1/02_03.wav").write_bytes(b"of yesterday")
    assert not run_quickly(
        f"root={tmp_path / 'data'}", f"checkpoint={work / 'av.pt'}", f"save_path={tmp_path / 'out'}"
    )
    summary = json.loads((tmp_path / "out/inference.json").read_text())
    assert "s1/02_03.wav: left by an earlier run" in str(summary)
    assert (tmp_path / "out/s1/02_03.wav").read_bytes() == b"of yesterday"


def test_usage_error_is_one_line_and_exit_code_2(work, tmp_path):
    done = command_line(f"root={work / 'data'}", "save_path=out", "run_dir=saved/separator", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert "checkpoint" in done.stderr and str(tmp_path / "saved/separator") in done.stderr
    assert os.listdir(tmp_path) == []


def test_outputs_that_cannot_be_or_would_lie_among_the_data_are_refused_before_any_work(work, tmp_path):
    root = tmp_path / "course"
    for part in ("train", "test"):
        shutil.copytree(work / "data/audio", root / "audio" / part)
    common = [f"root={root}", "part=test", f"checkpoint={work / 'audio.pt'}"]
    before = tree(root)
    for taken in ("train", "test"):
        with pytest.raises(ValueError, match="is where mixtures lie"):
            run_quickly(*common, f"save_path={root / 'audio' / taken}")
    assert tree(root) == before
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"save_path=.*a file is in its place"):
        run_quickly(*common, f"save_path={tmp_path / 'file'}")


def make_cache(root, out, weights):
    front_end = FrontEnd(network=NETWORK, weights=weights, device="cpu")
    precompute(root, out, front_end, workers=0)
    return out


def test_cached_lips_give_what_computed_ones_give(work, tmp_path):
    cache = make_cache(work / "data", tmp_path / "lips.h5", work / "front_end.pt")
    common = [f"root={work / 'data'}", f"checkpoint={work / 'av.pt'}"]
    assert run_quickly(*common, f"save_path={tmp_path / 'computed'}")
    assert run_quickly(*common, f"save_path={tmp_path / 'cached'}", f"cache={cache}")
    for name in ("01_02.wav", "03_99.wav"):
        for computed, cached in zip(read(tmp_path / "computed", name), read(tmp_path / "cached", name)):
            assert np.abs(computed - cached).max() <= 1


def test_a_cache_stands_in_for_mouths_whose_ids_have_underscores(work, tmp_path):
    root = tmp_path / "data"
    for source, name in (("audio/mix/01_02.wav", "audio/mix/a_1_b_2.wav"),
                         ("mouths/01.npz", "mouths/a_1.npz"), ("mouths/02.npz", "mouths/b_2.npz")):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(work / "data" / source, root / name)
    cache = make_cache(root, tmp_path / "lips.h5", work / "front_end.pt")
    shutil.rmtree(root / "mouths")
    checkpoint = f"checkpoint={work / 'av.pt'}"
    assert run_quickly(checkpoint, f"root={root}", f"save_path={tmp_path / 'out'}", f"cache={cache}")
    assert run_quickly(checkpoint, f"root={work / 'data'}", f"save_path={tmp_path / 'with_mouths'}")
    for voice, same in zip(read(tmp_path / "out", "a_1_b_2.wav"), read(tmp_path / "with_mouths")):
        assert np.abs(voice - same).max() <= 1


def test_a_name_that_is_not_utf8_is_told_and_ends_no_run(work, tmp_path):
    name = os.fsdecode(b"caf\xe9_1.wav")
    (tmp_path / "data/audio/mix").mkdir(parents=True)
    for copy in (name, "1_2.wav"):
        shutil.copy(work / "data/audio/mix/01_02.wav", tmp_path / "data/audio/mix" / copy)
    done = command_line(
        f"root={tmp_path / 'data'}",
        f"save_path={tmp_path / 'out'}",
        f"checkpoint={work / 'audio.pt'}",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    assert "1 of 2 recordings" in done.stdout and r"caf\udce9_1.wav: its name is not UTF-8" in done.stdout
    (failure,) = json.loads((tmp_path / "out/inference.json").read_text())["parts"]["custom"]["failures"]
    assert os.path.basename(failure["file"]) == name


def test_a_path_of_digits_is_asked_for_as_a_path(work, tmp_path):
    done = command_line(
        f"root={work / 'data'}", "save_path=2024_05", f"checkpoint={work / 'audio.pt'}", cwd=tmp_path
    )
    assert done.returncode == 2 and "202405 is taken as a number" in done.stderr, done.stderr


def test_swapped_mouth_files_swap_the_voices(work, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data")
    mouths = tmp_path / "data/mouths"
    (mouths / "01.npz").rename(mouths / "x")
    (mouths / "02.npz").rename(mouths / "01.npz")
    (mouths / "x").rename(mouths / "02.npz")
    for root, out in ((work / "data", "straight"), (tmp_path / "data", "crossed")):
        assert run_quickly(f"root={root}", f"checkpoint={work / 'av.pt'}", f"save_path={tmp_path / out}")
    straight, crossed = read(tmp_path / "straight"), read(tmp_path / "crossed")
    assert np.abs(straight[0] - crossed[1]).max() <= 1
    assert np.abs(straight[0] - crossed[0]).max() > 100


def test_cache_of_other_weights_is_refused_naming_both(work, tmp_path):
    cache = make_cache(work / "data", tmp_path / "lips.h5", work / "other.pt")
    trained, other = (file_digest(work / f"{name}.pt") for name in ("front_end", "other"))
    with pytest.raises(
        LipsError, match=f"lips.h5.*weights_sha256 {trained} in training, {other} in this file"
    ):
        run_quickly(
            f"root={work / 'data'}", f"checkpoint={work / 'av.pt'}", f"save_path={tmp_path}", f"cache={cache}"
        )


def test_other_weights_are_refused_and_absent_ones_asked_for(work, tmp_path):
    common = [f"root={work / 'data'}", f"save_path={tmp_path / 'out'}"]
    with pytest.raises(LipsError, match=r"other\.pt does not fit the checkpoint.*weights_sha256"):
        run_quickly(*common, f"checkpoint={work / 'av.pt'}", f"weights={work / 'other.pt'}")
    shutil.copy(work / "av.pt", tmp_path / "best.pt")
    with pytest.raises(LipsError, match=r"absent\.pt.*weights=FILE.*cache=FILE"):
        run_quickly(*common, f"checkpoint={tmp_path}", f"weights={tmp_path / 'absent.pt'}")
    assert not (tmp_path / "out").exists()


def test_weights_that_moved_are_found_beside_the_checkpoint(work, tmp_path):
    checkpoint = torch.load(work / "av.pt", weights_only=True)
    checkpoint["front_end"]["weights"] = "lips.pt"  # of a path, a cache keeps the name
    save_checkpoint(tmp_path / "run/last.pt", checkpoint)
    common = [f"root={work / 'data'}", f"save_path={tmp_path / 'out'}", f"checkpoint={tmp_path / 'run'}"]
    with pytest.raises(LipsError, match=r"lips\.pt"):
        run_quickly(*common)
    shutil.copy(work / "front_end.pt", tmp_path / "run/lips.pt")
    assert run_quickly(*common)


def test_mouth_files_that_a_cache_lacks(work, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data")
    hidden = (tmp_path / "data/mouths/03.npz").rename(tmp_path / "03.npz")
    cache = make_cache(tmp_path / "data", tmp_path / "lips.h5", work / "front_end.pt")
    hidden.rename(tmp_path / "data/mouths/03.npz")
    checkpoint = torch.load(work / "av.pt", weights_only=True)
    checkpoint["front_end"]["weights"] = "/nowhere/lips.pt"
    save_checkpoint(tmp_path / "lost.pt", checkpoint)
    common = [f"root={tmp_path / 'data'}", f"save_path={tmp_path / 'out'}", f"cache={cache}"]
    assert run_quickly(*common, f"checkpoint={work / 'av.pt'}")  # computed from the weights
    assert not run_quickly(*common, f"checkpoint={tmp_path / 'lost.pt'}")
    part = json.loads((tmp_path / "out/inference.json").read_text())["parts"]["custom"]
    assert part["separated"] == 1  # 01_02, which needs nothing else
    assert {os.path.basename(entry["file"]) for entry in part["failures"]} == {"02_03.wav", "03_99.wav"}
    assert all("precompute_visual.py" in entry["reason"] for entry in part["failures"])


def test_broken_mouth_file_is_told_and_the_rest_used(work, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data")
    whole = (tmp_path / "data/mouths/01.npz").read_bytes()
    (tmp_path / "data/mouths/01.npz").write_bytes(whole[: len(whole) // 2])
    assert not run_quickly(
        f"root={tmp_path / 'data'}", f"save_path={tmp_path / 'out'}", f"checkpoint={work / 'av.pt'}"
    )
    part = json.loads((tmp_path / "out/inference.json").read_text())["parts"]["custom"]
    assert part["separated"] == 3 and not part["failures"]
    assert "01.npz" in part["damaged_mouths"][0]["reason"]


def test_directory_without_mouths(work, tmp_path):
    shutil.copytree(work / "data", tmp_path / "data", ignore=shutil.ignore_patterns("mouths"))
    for checkpoint in ("av.pt", "audio.pt"):
        assert run_quickly(
            f"root={tmp_path / 'data'}",
            f"save_path={tmp_path / checkpoint}",
            f"checkpoint={work / checkpoint}",
        )
        mix = soundfile.read(work / "data/audio/mix/01_02.wav", dtype="int16")[0].astype(int)
        assert (sum(read(tmp_path / checkpoint)) == mix).all()


def test_audio_only_separator_needs_no_front_end(work, tmp_path, monkeypatch):
    monkeypatch.setattr("src.trainer.lip_source.FrontEnd", None)
    assert run(
        "metrics=si_snr_only", f"root={work / 'data'}", f"save_path={tmp_path}", f"checkpoint={work}/audio.pt"
    )
    part = json.loads((tmp_path / "inference.json").read_text())["parts"]["custom"]
    assert part["scored_in_better_order"] == part["scored"] == 3 and "SI-SNRi" in part["metrics"]


def test_other_datasets_take_the_place_of_the_custom_one(work, tmp_path):
    root = tmp_path / "course"
    shutil.copytree(work / "data/audio", root / "audio/val")
    shutil.copytree(work / "data/mouths", root / "mouths")
    options = [
        "datasets=avss",
        f"root={root}",
        f"checkpoint={work / 'av.pt'}",
        f"save_path={tmp_path / 'out'}",
    ]
    assert run_quickly(*options)
    assert len(os.listdir(tmp_path / "out/s1")) == 3
    with pytest.raises(ValueError, match=r"inferencer\.parts: no dev in datasets; there are train, val"):
        run_quickly(*options, "inferencer.parts=[dev]")
    assert run_quickly(*options, "inferencer.parts=val")
    with pytest.raises(ValueError, match="part=test: the chosen datasets have val"):
        run_quickly(*options, "part=test")


def test_one_window_or_many_give_nearly_the_same(work, tmp_path):
    root = tmp_path / "data"
    (root / "audio/mix").mkdir(parents=True)
    long = np.tile(soundfile.read(work / "data/audio/mix/01_02.wav")[0], 12)
    soundfile.write(root / "audio/mix/a_b.wav", long, 16_000)
    for name, window in (("whole", "null"), ("windows", 3)):
        run_quickly(
            f"root={root}",
            f"save_path={tmp_path / name}",
            f"checkpoint={work / 'av.pt'}",
            f"inferencer.window_s={window}",
        )
    whole, joined = (read(tmp_path / name, "a_b.wav") for name in ("whole", "windows"))
    error = np.mean((whole[0] - joined[0]) ** 2.0) / np.mean(whole[0] ** 2.0)
    assert error < 1e-2


def test_damaged_checkpoint_and_cache_are_named(work, tmp_path):
    (tmp_path / "half.pt").write_bytes((work / "av.pt").read_bytes()[:1000])
    (tmp_path / "no.h5").write_bytes(b"no cache")
    common = [f"root={work / 'data'}", f"save_path={tmp_path / 'out'}"]
    with pytest.raises(CheckpointError, match=r"half\.pt"):
        run_quickly(*common, f"checkpoint={tmp_path / 'half.pt'}")
    with pytest.raises(CacheError, match=r"no\.h5"):
        run_quickly(*common, f"checkpoint={work / 'av.pt'}", f"cache={tmp_path / 'no.h5'}")
