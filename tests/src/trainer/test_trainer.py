"""The training loop through `Trainer.train` and the checkpoints it leaves."""

import copy
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from src.datasets.collate import collate_fn
from src.trainer.base_trainer import TrainingDiverged
from src.trainer.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    ship_checkpoint,
)
from src.trainer.ema import WeightAverage
from src.trainer.schedule import warmup_cosine
from tests.src.trainer.tones import compose, make_trainer


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("options", [[], ["trainer.accumulation=2", "dataloader.num_workers=1"]])
def test_two_epochs_resumed_for_two_equal_four(tmp_path, options):
    straight = make_trainer(tmp_path / "straight", *options)
    straight.train()
    config = compose(*options)
    config.trainer.n_epochs, config.scheduler.total_steps = 2, 12
    make_trainer(tmp_path / "parts", config=config).train()
    resumed = make_trainer(tmp_path / "parts", "trainer.resume_from=last.pt", *options)
    assert resumed.step == 6
    resumed.train()
    assert resumed.step == straight.step == 12
    assert_same(weights(resumed), weights(straight))
    assert_same(resumed.average.shadow, straight.average.shadow)
    assert resumed.best == straight.best


def test_validation_hears_the_average_of_the_weights(tmp_path):
    trainer = make_trainer(tmp_path, "trainer.n_epochs=1", "optimizer.lr=1e-2", "trainer.ema_decay=0.9")
    trainer.train()
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    validated = checkpoint["monitor_best"]
    assert validated == trainer.best
    trainer.average = None
    for weights_used, same in (("state_dict", False), ("ema", True)):
        trainer.best = None
        trainer.model.load_state_dict(checkpoint[weights_used])
        trainer._validate(1)
        assert (abs(trainer.best - validated) < 1e-4) == same, weights_used


def test_the_rate_warms_up_and_falls_like_half_a_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = warmup_cosine(optimizer, warmup_steps=4, total_steps=24, final_share=0.1)
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0]) and rates[4] == pytest.approx(2.0)
    assert rates[14] == pytest.approx(2.0 * 0.55) and rates[24:] == pytest.approx([0.2] * 6)


def test_the_average_forgets_the_start_soon_and_keeps_to_its_decay_later():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    torch.nn.init.ones_(model.weight)
    found = []
    for _ in range(20):
        before = average.shadow["weight"].item()
        average.update(model)
        found.append((1 - average.shadow["weight"].item()) / (1 - before))
    assert found[:2] == pytest.approx([2 / 11, 3 / 12]) and found[-1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "option",
    ["optimizer.lr=0.1", "optimizer.weight_decay=0.5", "trainer.monitor=min val_loss"],
)
def test_what_a_checkpoint_would_bring_back_cannot_be_set_anew(tmp_path, option):
    make_trainer(tmp_path, "trainer.n_epochs=1").train()
    with pytest.raises(CheckpointError, match="goes on as it began") as caught:
        make_trainer(tmp_path, "trainer.resume_from=last.pt", option)
    assert option.split("=")[0] in str(caught.value) or "optimizer." in str(caught.value)


def test_a_kill_between_the_checkpoints_loses_no_best_weights(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "trainer.n_epochs=1")
    written = []
    monkeypatch.setattr(trainer, "_save", lambda epoch, name: written.append(name))
    trainer.train()
    assert written == ["best.pt", "last.pt"]


def test_an_epoch_that_ends_with_the_time_is_validated(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("src.trainer.base_trainer.time.monotonic", lambda: next(clock))
    stopped = make_trainer(tmp_path, "trainer.max_minutes=0.04")  # 2.4 ticks: the 3 steps of the first epoch
    stopped.train()
    assert stopped.stopped_by_time and stopped.step == 3
    assert (tmp_path / "best.pt").is_file()


def test_validation_without_a_voice_to_score_says_so(tmp_path):
    trainer = make_trainer(tmp_path)
    silent = [
        {**item, "sources": torch.zeros_like(item["sources"])} for item in trainer.evaluation_loaders["val"]
    ]
    trainer.evaluation_loaders = {"val": silent}
    with pytest.raises(TrainingDiverged, match="val_SI-SNRi has no value"):
        trainer._validate(1)


def test_a_score_does_not_depend_on_what_shares_the_batch(tmp_path):
    trainer = make_trainer(tmp_path)
    torch.nn.init.normal_(trainer.model.eval().decoder.bands[0].weight, std=0.3)
    items = list(trainer.evaluation_loaders["val"].dataset)
    short = {**items[0], "mix": items[0]["mix"][:2560], "sources": items[0]["sources"][:, :2560]}
    short["visual"] = short["visual"][:, :4]
    alone = trainer.process_batch(collate_fn([short]), trainer.evaluation_tracker, is_train=False)
    padded = trainer.process_batch(collate_fn([short, *items]), trainer.evaluation_tracker, is_train=False)
    assert padded["estimates"].shape[-1] == 4000
    torch.testing.assert_close(padded["estimates"][:1, :, :2560], alone["estimates"])
    assert not padded["estimates"][0, :, 2560:].any() and padded["visual_mask"].all()


def test_weights_alone_cannot_be_resumed(tmp_path):
    trainer = make_trainer(tmp_path / "run", "trainer.n_epochs=1")
    trainer.train()
    shipped = tmp_path / "weights.safetensors"
    ship_checkpoint(shipped, load_checkpoint(tmp_path / "run/last.pt"))
    with pytest.raises(CheckpointError, match=r"trainer\.init_from="):
        make_trainer(tmp_path / "other", f"trainer.resume_from={shipped}")


def test_time_limit_stops_within_an_epoch_and_continues_exactly(tmp_path, monkeypatch):
    straight = make_trainer(tmp_path / "straight")
    straight.train()
    clock = iter(range(1000))
    monkeypatch.setattr("src.trainer.base_trainer.time.monotonic", lambda: next(clock))
    stopped = make_trainer(tmp_path / "parts", "trainer.max_minutes=0.07")  # 4.2 ticks: steps 1 to 5
    stopped.train()
    assert stopped.stopped_by_time and stopped.step == 5
    monkeypatch.undo()
    resumed = make_trainer(tmp_path / "parts", "trainer.resume_from=last.pt")
    resumed.train()
    assert_same(weights(resumed), weights(straight))


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    # A large epsilon makes Adam linear in the gradient: rounding is not blown up to the size of a step.
    common = [
        "trainer.n_epochs=1",
        "trainer.epoch_len=2",
        "model.cue_dropout=0",
        "model.as_unseen=false",  # takes lips of the batch's other mixtures,
        "loss.contrast=0",  # as this takes their voices
        "+optimizer.eps=1",
        "optimizer.lr=1",
    ]
    one = make_trainer(tmp_path / "a", "dataloader.batch_size=4", *common)
    two = make_trainer(tmp_path / "b", "dataloader.batch_size=2", "trainer.accumulation=2", *common)
    start = weights(one)
    one.train()
    two.train()
    moved = sum((value - start[name]).abs().sum() for name, value in weights(one).items())
    apart = sum((value - weights(one)[name]).abs().sum() for name, value in weights(two).items())
    assert apart < 1e-3 * moved


def test_validation_changes_neither_weights_nor_random_state(tmp_path):
    trainer = make_trainer(tmp_path)
    before, state = weights(trainer), torch.get_rng_state()
    with torch.no_grad():
        first = trainer._validate(1)
    assert first and trainer._validate(1) is False
    assert_same(before, weights(trainer))
    assert torch.equal(state, torch.get_rng_state())


def test_training_lowers_the_loss_and_keeps_best_and_last(tmp_path):
    trainer = make_trainer(
        tmp_path, "trainer.n_epochs=6", "trainer.epoch_len=10", "trainer.log_step=10", "optimizer.lr=1e-2"
    )
    trainer.train()
    losses = [value for _, mode, name, value in trainer.writer.scalars if mode == "train" and name == "loss"]
    assert losses[-1] < losses[0] - 1, losses
    best = load_checkpoint(tmp_path / "best.pt")
    assert find_checkpoint(tmp_path) == tmp_path / "best.pt"
    assert (
        best["monitor_best"]
        == trainer.best
        == max(
            value for _, mode, name, value in trainer.writer.scalars if mode == "val" and name == "SI-SNRi"
        )
    )
    load_weights(trainer.model, best, tmp_path / "best.pt")
    assert_same(weights(trainer), best["ema"])
    assert {"add_audio", "add_image", "add_table"} <= set(trainer.writer.calls)


def test_gradient_norm_is_logged_before_clipping(tmp_path):
    trainer = make_trainer(tmp_path, "trainer.max_grad_norm=1e-4", "trainer.n_epochs=1")
    trainer.train()
    norms = [value for *_, name, value in trainer.writer.scalars if name == "grad_norm"]
    assert min(norms) > 1e-3


def test_nan_stops_the_run_and_names_the_batch(tmp_path):
    config = compose()
    config.datasets.train.poison = 7
    trainer = make_trainer(tmp_path, config=config)
    with pytest.raises(TrainingDiverged, match="tones07"):
        trainer.train()


def test_unknown_monitor_is_refused_with_the_known_names(tmp_path):
    with pytest.raises(ValueError, match=r"val_SI-SNRi"):
        make_trainer(tmp_path, "trainer.monitor=max test_SI-SNRi")


def test_early_stop(tmp_path):
    trainer = make_trainer(
        tmp_path, "trainer.n_epochs=50", "trainer.epoch_len=1", "trainer.early_stop=2", "optimizer.lr=0",
        "optimizer.weight_decay=0",
    )  # fmt: skip
    trainer.train()
    assert trainer.step == 3  # one validation sets the best, two do not improve it


def test_resuming_with_another_model_or_other_lips_is_refused(tmp_path):
    make_trainer(tmp_path, "trainer.n_epochs=1").train()
    with pytest.raises(CheckpointError, match=r"model configuration: resume with model\.channels=8$"):
        make_trainer(tmp_path, "trainer.resume_from=last.pt", "model.channels=16")
    with pytest.raises(CheckpointError, match="weights_sha256"):
        make_trainer(tmp_path, "trainer.resume_from=last.pt", front_end={"weights_sha256": "f00"})


def test_a_run_older_than_an_option_of_its_model_is_resumed(tmp_path):
    make_trainer(tmp_path, "trainer.n_epochs=1").train()
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    del checkpoint["config"]["model"]["matching_step"]
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert make_trainer(tmp_path, "trainer.resume_from=last.pt").step == 3
    with pytest.raises(CheckpointError, match=r"resume with model\.matching_step=1$"):
        make_trainer(tmp_path, "trainer.resume_from=last.pt", "model.matching_step=2")


def test_damaged_or_foreign_checkpoints_are_named(tmp_path):
    make_trainer(tmp_path, "trainer.n_epochs=1").train()
    whole = (tmp_path / "last.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.pt"):
            load_checkpoint(tmp_path / "bad.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of this project"):
        load_checkpoint(tmp_path / "bad.pt")


def test_kill_while_writing_leaves_the_last_whole_checkpoint(tmp_path):
    code = (
        "import sys, torch; from src.trainer.checkpoint import save_checkpoint\n"
        "content = {'state_dict': {'w': torch.randn(500_000)}, 'config': {}}\n"
        "print('ready', flush=True)\n"
        "for step in range(10**9): save_checkpoint(sys.argv[1], {**content, 'step': step})"
    )
    path, delays = tmp_path / "last.pt", torch.rand(6, generator=torch.Generator().manual_seed(0)) * 0.1
    process = None
    for delay in delays.tolist():
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        while not path.exists():
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert load_checkpoint(path)["step"] >= 0


def test_transforms_on_the_device_act_on_their_key(tmp_path):
    trainer = make_trainer(tmp_path)
    halved = copy.copy(trainer)
    halved.batch_transforms = {"inference": {"mix": lambda mix: mix / 2}, "train": None}
    batch = next(iter(trainer.evaluation_loaders["val"]))
    assert torch.equal(halved.transform_batch(batch, is_train=False)["mix"], batch["mix"] / 2)
    assert torch.equal(halved.transform_batch(batch, is_train=True)["mix"], batch["mix"])


@pytest.mark.parametrize(
    ("share", "expected"), [(0, []), (0.5, [2, 4, 6]), (0.67, [2, 3, 5, 6]), (1, [1, 2, 3, 4, 5, 6])]
)
def test_steps_that_refine_go_on_from_the_estimates_of_a_first_pass(tmp_path, share, expected):
    options = ["trainer.n_epochs=2", f"trainer.refining_share={share}", "model.refining=true"]
    trainer = make_trainer(tmp_path, *options)
    forward, passes = trainer.model.forward, []

    def watched(earlier=None, **batch):
        outputs = forward(earlier=earlier, **batch)
        if trainer.model.training:
            passes.append((trainer.step + 1, earlier, outputs["estimates"]))
        return outputs

    trainer.model.forward = watched
    trainer.train()
    refined = [number for number, (_, earlier, _) in enumerate(passes) if earlier is not None]
    assert [passes[number][0] for number in refined] == expected
    assert len(passes) == 6 + len(expected)
    for number in refined:
        first, earlier = passes[number - 1][2], passes[number][1]
        assert torch.equal(first, earlier) and not first.requires_grad
    trained = bool(trainer.model.refinement.seen.weight.any())
    assert trained == bool(expected)


def test_a_model_that_does_not_refine_has_one_pass_a_step(tmp_path):
    trainer = make_trainer(tmp_path, "trainer.n_epochs=1", "trainer.refining_share=1", "model.refining=false")
    trainer.train()
    assert trainer.step == 3


@pytest.mark.parametrize("share", ["refining_share", "exchanged_share"])
def test_a_share_that_cannot_be_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match=rf"trainer\.{share}=1\.5: must lie in 0\.\.1"):
        make_trainer(tmp_path, f"trainer.{share}=1.5")


def test_estimates_of_an_earlier_pass_trade_places_for_a_while(tmp_path):
    options = ["trainer.n_epochs=1", "trainer.refining_share=1", "model.refining=true"]
    trainer = make_trainer(tmp_path, *options, "trainer.exchanged_share=1")
    forward, passes = trainer.model.forward, []

    def watched(earlier=None, **batch):
        outputs = forward(earlier=earlier, **batch)
        if trainer.model.training:
            passes.append((earlier, outputs["estimates"].detach()))
        return outputs

    trainer.model.forward = watched
    trainer.train()
    assert len(passes) == 6
    # In the first step both estimates are half the mixture.
    for (_, first), (earlier, _) in zip(passes[2::2], passes[3::2]):
        torch.testing.assert_close(earlier.sum(1), first.sum(1))
        exchanged = (earlier != first).any(dim=1)
        assert exchanged.any(dim=1).all() and not exchanged.all(dim=1).any()
