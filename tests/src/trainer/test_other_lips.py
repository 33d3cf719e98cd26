"""A separator that is given other lips separates as before where these tell the same as the old ones did."""

import hashlib
import sys

import numpy as np
import pytest
import soundfile
import torch

from pipeline.cache import CacheWriter, FeatureCache, Source
from src.model import BandSeparator
from src.trainer.checkpoint import save_checkpoint
from src.trainer.other_lips import main
from src.trainer.separator import load_separator
from src.trainer.synchrony import fit_lips

FRAMES, OLD_DIM, NEW_DIM, MIXES = 25, 6, 9, 12
SIZES = {
    "visual_dim": OLD_DIM, "num_bands": 8, "channels": 8, "squeezed": 2, "cue_channels": 8, "synchronous": 4,
    "matching_channels": 6, "max_lag": 1,
}  # fmt: skip


def write_cache(path, clips, weights):
    identity = {
        "network": "none", "weights": weights, "weights_sha256": hashlib.sha256(weights.encode()).hexdigest(),
        "weights_kind": "made up by a test", "preprocessing_version": 1, "features": "frontend", "dtype": "float32",
        "dim": next(iter(clips.values())).shape[1],
    }  # fmt: skip
    with CacheWriter(path, identity) as writer:
        writer.commit(
            [
                (name, Source(hashlib.sha256().digest(), 0, 0, 0), rows.astype(np.float16))
                for name, rows in clips.items()
            ]
        )
        writer.complete()


def separator(path, front_end, **options):
    torch.manual_seed(0)
    sizes = {**SIZES, **options}
    model = BandSeparator(**sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, lambda: save_checkpoint(
        path,
        {
            "arch": "BandSeparator", "step": 1, "epoch": 1, "state_dict": model.state_dict(), "ema": None,
            "config": {"model": {"_target_": "src.model.BandSeparator", **sizes}}, "front_end": front_end,
        },
    )  # fmt: skip


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    old, root = {}, tmp_path / "data"
    for place in ("mix", "s1", "s2"):
        (root / "audio" / "train" / place).mkdir(parents=True)
    (root / "mouths").mkdir()
    for number in range(MIXES):
        ids, waves = (f"{2 * number}", f"{2 * number + 1}"), []
        for name in ids:
            level = rng.uniform(0, 1, FRAMES)
            waves.append(0.2 * np.repeat(level, 640) * rng.standard_normal(FRAMES * 640))
            old[name] = level[:, None] * np.linspace(1, 2, OLD_DIM) + 0.3 * rng.standard_normal(
                (FRAMES, OLD_DIM)
            )
            (root / "mouths" / f"{name}.npz").touch()
        for place, wave in (("mix", sum(waves)), ("s1", waves[0]), ("s2", waves[1])):
            soundfile.write(root / "audio" / "train" / place / f"{'_'.join(ids)}.wav", wave, 16000)
    turn = rng.standard_normal((OLD_DIM, NEW_DIM))
    new = {name: rows @ turn for name, rows in old.items()}
    write_cache(tmp_path / "old.h5", old, "old")
    write_cache(tmp_path / "new.h5", new, "new")
    return root, old, new


def run(monkeypatch, folder, data, **options):
    named = {
        "checkpoint": folder / "a.pt", "root": data, "old-cache": folder / "old.h5", "cache": folder / "new.h5",
        "out": folder / "b.safetensors", **options,
    }  # fmt: skip
    words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["other_lips", *words])
    return main()


@torch.no_grad()
def estimates(model, mix, *lips):
    return model.eval()(mix, torch.tensor(np.stack(lips), dtype=torch.float32)[None])["estimates"]


def test_it_separates_as_before(data, tmp_path, monkeypatch):
    root, old, new = data
    model, save = separator(tmp_path / "a.pt", dict(FeatureCache(tmp_path / "old.h5").identity))
    fit_lips(model, str(root), str(tmp_path / "old.h5"))
    save()
    assert run(monkeypatch, tmp_path, root) == 0
    changed = load_separator(tmp_path / "b.safetensors")
    assert changed.model.visual_dim == NEW_DIM and changed.front_end["weights"] == "new"
    mix = torch.randn(1, FRAMES * 640)
    before, after = (
        estimates(model, mix, old["0"], old["1"]),
        estimates(changed.model, mix, new["0"], new["1"]),
    )
    swapped = estimates(changed.model, mix, new["1"], new["0"])
    error = (after - before).square().mean()
    assert error < 1e-3 * (swapped - before).square().mean()  # the lips count, and what they tell is the same


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"learnt": 2}, {}, "fixed directions alone"),
        ({}, {"old-cache": "new.h5"}, "not of the lips of"),
        ({}, {"cache": "few.h5"}, "holds other mouths"),
        ({}, {"out": "b.pt"}, "must end in .safetensors"),
        ({}, {"checkpoint": "none.pt"}, "does not exist"),
        ({}, {"root": "elsewhere"}, "lacks audio/train"),
    ],
)
def test_what_does_not_fit_is_told(data, tmp_path, monkeypatch, capsys, options, arguments, message):
    root, _, new = data
    _, save = separator(tmp_path / "a.pt", dict(FeatureCache(tmp_path / "old.h5").identity), **options)
    save()
    write_cache(tmp_path / "few.h5", {"0": new["0"]}, "new")
    assert (
        run(monkeypatch, tmp_path, root, **{name: tmp_path / file for name, file in arguments.items()}) == 2
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
