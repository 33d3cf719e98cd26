"""`python train.py` on a small corpus: what a user types, sees and finds afterwards."""

import json
import logging
import os
import subprocess
import sys

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from pipeline.cache import FeatureCache
from pipeline.extract import precompute
from pipeline.frontend import FrontEnd
from pipeline.lipreading.seeded import write_seeded
from pipeline.script_config import register_resolvers
from pipeline.synthetic import write_corpus
from src.trainer.checkpoint import load_checkpoint, save_checkpoint
from src.trainer.model_building import build_model
from src.utils.io_utils import ROOT_PATH

NETWORK = "lrw_snv05x_tcn1x"
TINY = [
    "model.num_bands=8",
    "model.channels=8",
    "model.squeezed=2",
    "model.shared_blocks=1",
    "model.voice_blocks=2",
    "model.cue_channels=8",
    "model.cue_dropout=0",
    "dataloader.num_workers=0",
    "trainer.device=cpu",
    "trainer.n_epochs=1",
    "trainer.epoch_len=3",
    "trainer.log_examples=1",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A small corpus of talking mouths and the cache of its embeddings."""
    folder = tmp_path_factory.mktemp("train")
    root = write_corpus(folder / "corpus", train=12, val=3, test=0, jobs=1)
    write_seeded(NETWORK, folder / "seeded.pt")
    front_end = FrontEnd(network=NETWORK, weights=folder / "seeded.pt", device="cpu")
    precompute(root, folder / "mouths.h5", front_end, workers=0)
    return folder


def train(work, *options, launcher=(), threads="1"):
    arguments = [
        f"datasets.root={work / 'corpus'}",
        f"cache={work / 'mouths.h5'}",
        f"trainer.save_dir={work / 'saved'}",
        *TINY,
        *options,
    ]
    return subprocess.run(
        [sys.executable, *launcher, str(ROOT_PATH / "train.py"), *arguments],
        cwd=work,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )


def test_a_run_leaves_checkpoints_and_logs_and_is_not_overwritten_but_continued(work):
    done = train(work, "run_name=plain")
    assert done.returncode == 0, done.stderr
    folder = work / "saved/plain"
    assert {"best.pt", "last.pt", "info.log", "scalars.csv", "git_commit.txt"} <= {
        path.name for path in folder.iterdir()
    }
    assert list(folder.rglob("*_s1_estimate*.wav")) and list(folder.rglob("*_mix*.png"))
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["step"] == 3 and checkpoint["front_end"]["network"] == NETWORK

    again = train(work, "run_name=plain")
    assert again.returncode == 2 and "trainer.resume_from=last.pt" in again.stderr
    assert "Traceback" not in again.stderr

    resumed = train(work, "run_name=plain", "trainer.resume_from=last.pt", "trainer.n_epochs=2")
    assert resumed.returncode == 0, resumed.stderr
    assert load_checkpoint(folder / "last.pt")["step"] == 6

    failed = train(work, "run_name=plain", "trainer.override=true", "cache=absent.h5")
    assert failed.returncode == 2
    assert load_checkpoint(folder / "last.pt")["step"] == 6, "what could not be replaced is still there"
    replaced = train(work, "run_name=plain", "trainer.override=true")
    assert replaced.returncode == 0, replaced.stderr
    assert load_checkpoint(folder / "last.pt")["step"] == 3
    assert not list((work / "saved").glob("*.replaced"))


def test_a_time_limit_is_a_success_and_keeps_a_checkpoint(work):
    done = train(work, "run_name=short", "trainer.epoch_len=100000", "trainer.max_minutes=0.02")
    assert done.returncode == 0, done.stderr
    assert "continue with trainer.resume_from=last.pt" in done.stdout
    assert 0 < load_checkpoint(work / "saved/short/last.pt")["step"] < 100000


def test_a_data_set_without_validation_can_be_trained_on(work):
    done = train(work, "run_name=blind", "datasets.val=null", "trainer.monitor=off")
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(work / "saved/blind/last.pt")["step"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cache=null"], "precompute_visual.py"),
        (["cache=absent.h5"], "absent.h5"),
        (["datasets.root=absent"], "absent"),
        (["trainer.n_epoch=1"], "n_epoch"),
        (["model=largest"], "largest"),
        (["scheduler=constant", "+scheduler.warmup_steps=3"], "leave it out with ~scheduler.warmup_steps"),
        (["+experiment=course"], "root not given: add root=..."),
        (["trainer.amp=half"], "trainer.amp=half"),
        (["trainer.val_period=0"], "trainer.val_period=0: take 1 or more"),
        (["run_name=2024_05"], "run_name=202405: is taken as a number"),
        (["trainer.save_dir=mouths.h5"], "trainer.save_dir, run_name="),
        (["trainer.resume_from=/dev/null"], "/dev/null"),
        (["datasets.root=/data/Müller"], """'root="/data/Müller (1)"'"""),
        (["dataloader.batch_size=500"], "dataloader.batch_size"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(work, options, message):
    done = train(work, "run_name=wrong", *options)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_wandb_offline_from_the_command_line_needs_no_account(work, monkeypatch):
    for key in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(work / "no_account"))
    monkeypatch.setenv("HOME", str(work))
    done = train(work, "run_name=tracked", "writer=wandb")
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stdout
    assert list((work / "saved/tracked").rglob("*.wandb"))


def test_two_processes_train_as_one_with_their_batches_together(work):
    """Gradients are averaged over the processes and only the first one writes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # A large epsilon makes Adam linear in the gradient: rounding is not blown up to the size of a step.
    common = [
        "transforms=none",
        "model.as_unseen=false",  # takes lips of the batch's other mixtures,
        "loss.contrast=0",  # as this takes their voices
        "optimizer=adamw",
        "+optimizer.eps=1",
        "optimizer.lr=1",
        "optimizer.fused=false",
    ]
    two = train(work, "run_name=two", "dataloader.batch_size=2", *common, launcher=launcher)
    assert two.returncode == 0, two.stderr
    one = train(work, "run_name=one", "dataloader.batch_size=4", *common)
    assert one.returncode == 0, one.stderr
    assert two.stdout.count(" parameters") == 1
    results = {name: load_checkpoint(work / f"saved/{name}/last.pt") for name in ("one", "two")}
    assert results["one"]["step"] == results["two"]["step"] == 3
    weights = {name: result["state_dict"] for name, result in results.items()}
    apart = sum((weights["one"][key] - value).abs().sum() for key, value in weights["two"].items())
    size = sum(value.abs().sum() for value in weights["one"].values())
    assert apart < 1e-5 * size
    assert results["two"]["monitor_best"] == pytest.approx(results["one"]["monitor_best"], abs=1e-3)


def test_without_options_it_trains_on_the_embedded_corpus(work, tmp_path):
    (tmp_path / "saved").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT_PATH / "train.py"), *TINY, f"trainer.save_dir={tmp_path / 'saved'}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "saved/embedded/corpus/corpus.json").read_text())
    front_end = load_checkpoint(tmp_path / "saved/separator/last.pt")["front_end"]
    assert "match mouths with voices" in front_end["weights_kind"]
    assert torch.isfinite(torch.tensor(load_checkpoint(tmp_path / "saved/separator/last.pt")["monitor_best"]))


def test_lips_can_begin_with_what_was_learnt_without_them(work):
    first = train(work, "run_name=without", "model.visual_dim=0", "metrics=si_snr_only")
    assert first.returncode == 0, first.stderr
    then = train(
        work, "run_name=with", f"trainer.init_from={work / 'saved/without'}", "optimizer.lr=0", "metrics=si_snr_only",
        "optimizer.weight_decay=0", "trainer.epoch_len=1",
    )  # fmt: skip
    assert then.returncode == 0, then.stderr
    assert "new are lips.synchrony, " in then.stdout and "canonical correlations" in then.stdout
    before, after = (load_checkpoint(work / f"saved/{name}/last.pt") for name in ("without", "with"))
    taken = [name for name in after["state_dict"] if not name.startswith(("lips.", "matching.", "tracking."))]
    assert taken and all(torch.equal(after["state_dict"][name], before["ema"][name]) for name in taken)
    wrong = train(work, "run_name=wrong", f"trainer.init_from={work / 'saved/without'}", "model=danet")
    assert wrong.returncode == 2, wrong.stderr


def test_weights_to_begin_with_bring_their_map_of_the_lips(work, tmp_path, caplog):
    """What was trained on one map of the lips is lost on another; lips of another front-end need a map of their own."""
    options = [
        f"datasets.root={work / 'corpus'}",
        f"cache={work / 'mouths.h5'}",
        "model=tiny",
        "visual_dim=1024",
    ]
    register_resolvers()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(ROOT_PATH / "src/configs")):
        config = hydra.compose("train", overrides=options)
    model = build_model(config, True, logging.getLogger())
    fitted = model.lips.synchrony.clone()
    front_end = FeatureCache(work / "mouths.h5").identity
    weights = {**model.state_dict(), "lips.synchrony": 2 * fitted}
    plain = OmegaConf.to_container(config, resolve=True)
    maps, warned = {}, {}
    for name, digest in (("same", front_end["weights_sha256"]), ("other", "0" * 64)):
        content = {
            "state_dict": weights,
            "config": plain,
            "front_end": {**front_end, "weights_sha256": digest},
        }
        save_checkpoint(tmp_path / name / "best.pt", content)
        config.trainer.init_from = str(tmp_path / name)
        caplog.clear()
        maps[name] = build_model(config, True, logging.getLogger()).lips.synchrony
        warned[name] = "src.trainer.other_lips" in caplog.text
    assert warned == {"same": False, "other": True}
    assert torch.equal(maps["same"], 2 * fitted)
    torch.testing.assert_close(maps["other"], fitted)
