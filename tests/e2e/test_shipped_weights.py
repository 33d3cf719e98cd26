"""The weights that ship: whole, small, as announced, and good for what they are for."""

import hashlib
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import soundfile

from pipeline.default_weights import SHIPPED, default_weights
from pipeline.download import OURS
from pipeline.download import main as download_main
from pipeline.script_config import register_resolvers
from pipeline.synchrony.clips import ClipStore, list_clips
from pipeline.synchrony.halves import load_halves
from pipeline.synchrony.measure import measure
from src.trainer.checkpoint import CheckpointError, start_from
from src.trainer.separator import SHIPPED as SMALL

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT.parent / "shared" / "samples" / "course"


@pytest.mark.parametrize("name", list(OURS))
def test_every_file_is_the_one_announced(name):
    path = SHIPPED.parent / OURS[name].file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == OURS[name].sha256
    assert OURS[name].file in (SHIPPED.parent / "README.md").read_text()


def test_together_they_are_small():
    assert sum(path.stat().st_size for path in SHIPPED.parent.glob("*.safetensors")) < 6e6


def begin_with_small(*options: str) -> list[str]:
    """Names of what is new in a model of these options that begins with the separator that ships."""
    register_resolvers()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(ROOT / "src/configs")):
        config = hydra.compose("train", ["visual_dim=64", *options])
    return start_from(hydra.utils.instantiate(config.model), SMALL)


@pytest.mark.parametrize(
    ("options", "new"),
    [
        (["model=small"], ()),
        (["model=audio_only"], ()),
        (["model=small", "model.window=768"], ("stft.",)),
        (["model=small", "model.rounds=5"], ("repeats.3",)),
        (["model=small", "model.synchronous=32"], ("lips.", "matching.")),
        (["model=small", "model.voice_blocks=6"], ("voices.4", "voices.5", "cues.", "exchange.")),
        (["model=small", "model.complex_masks=true"], ("imaginary.",)),
        (["model=small", "model.consistent=false"], ("decoder.",)),
        (["model=small", "visual_dim=512"], ("lips.",)),
    ],
)
def test_a_training_begins_with_them_where_they_are_of_its_kind(options, new):
    names = begin_with_small(*options)
    assert bool(names) == bool(new) and all(name.startswith(new) for name in names)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["model=tiny"], "encoder: 48 channels cannot become 40"),
        (["model=base"], "encoder: 48 channels cannot become 80"),
        (["model=danet"], "0% of its weights fit this DANet"),
        (["model=small", "model.squeezed=4"], "29% of its weights fit this BandSeparator"),
    ],
)
def test_a_training_that_could_not_use_them_is_told_so(options, reason):
    with pytest.raises(CheckpointError, match=rf"small\.safetensors: {reason}; .*trainer\.init_from=null"):
        begin_with_small(*options)


def test_the_command_checks_them(capsys, tmp_path, monkeypatch):
    assert download_main(["lips", "small"]) == 0
    assert capsys.readouterr().out.count("(as expected)") == 2
    assert download_main(["--list"]) == 0
    assert "small.safetensors" in capsys.readouterr().out
    monkeypatch.setattr("pipeline.download.SHIPPED", tmp_path / "lips.safetensors")
    assert download_main(["lips"]) == 1
    assert "is not in this clone" in capsys.readouterr().err
    (tmp_path / "lips.safetensors").write_bytes(b"something else")
    assert download_main(["lips"]) == 1
    assert "SHA-256" in capsys.readouterr().err


def test_published_weights_go_first_and_others_only_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.default_weights.FETCHED", tmp_path)
    assert default_weights() == default_weights("sync_light") == SHIPPED
    assert default_weights("lrw_snv1x_tcn1x") is None
    (tmp_path / "lrw_snv1x_tcn1x.pth").touch()
    assert default_weights() == SHIPPED
    assert default_weights("lrw_snv1x_tcn1x") == tmp_path / "lrw_snv1x_tcn1x.pth"
    (tmp_path / "lrw_resnet18_dctcn.pth.part").touch()
    assert default_weights() == SHIPPED
    (tmp_path / "lrw_resnet18_dctcn.pth").touch()
    assert default_weights() == tmp_path / "lrw_resnet18_dctcn.pth"


@pytest.mark.shared
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the genuine course mixes are not at hand")
def test_genuine_mouths_are_matched_with_their_voices():
    clips = list_clips(SAMPLES, None)
    measured = measure(*load_halves(SHIPPED.parent), clips, ClipStore(1))
    assert measured.clips == 7 and measured.matching[0] > 0.8


@pytest.mark.shared
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the genuine course mixes are not at hand")
def test_a_newcomer_separates_with_no_option(tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "inference.py"), f"root={SAMPLES}", f"save_path={tmp_path / 'out'}",
            "metrics.inference=[]",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 of 5 recordings separated" in done.stdout
    for mix in (SAMPLES / "audio" / "mix").iterdir():
        voices = [soundfile.read(tmp_path / "out" / voice / mix.name)[0] for voice in ("s1", "s2")]
        mixture = soundfile.read(mix)[0]
        assert np.abs(sum(voices) - mixture).max() < 2e-3 * max(1, np.abs(mixture).max())
        likeness = np.corrcoef(*voices)[0, 1]
        assert likeness < 0.8  # two voices, and not the mixture twice


@pytest.mark.parametrize("mouths", [True, False])
def test_a_newcomer_separates_without_lips(tmp_path, mouths):
    """Told not to look, or with nothing to look at."""
    (tmp_path / "data" / "audio" / "mix").mkdir(parents=True)
    voice = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(tmp_path / "data" / "audio" / "mix" / "1_2.wav", voice, 16000)
    options = []
    if mouths:
        (tmp_path / "data" / "mouths").mkdir()
        for name in ("1", "2"):
            np.savez(tmp_path / "data" / "mouths" / f"{name}.npz", data=np.zeros((25, 96, 96), np.uint8))
        options = ["inferencer.lips=none"]
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "inference.py"), f"root={tmp_path / 'data'}",
            f"save_path={tmp_path / 'out'}", "metrics.inference=[]", *options,
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 1 recordings separated" in done.stdout
    assert soundfile.info(tmp_path / "out" / "s2" / "1_2.wav").frames == 16000
