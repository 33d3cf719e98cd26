"""`trainer.amp=bfloat16_weights`: the network computes in bfloat16, what is trained and kept stays in float32."""

import pytest
import torch

from src.trainer.base_trainer import autocasts
from src.trainer.half_weights import HalfWeights
from tests.src.trainer.tones import make_trainer


def first_losses(trainer, monkeypatch) -> list[float]:
    """Loss of every training batch."""
    losses, process = [], trainer.process_batch

    def recorded(batch, tracker, *, is_train):
        done = process(batch, tracker, is_train=is_train)
        if is_train:
            losses.append(done["loss"].item())
        return done

    monkeypatch.setattr(trainer, "process_batch", recorded)
    trainer.train()
    return losses


def test_it_trains_as_float32_does_within_its_precision(tmp_path, monkeypatch):
    options = ["model.cue_dropout=0", "optimizer.lr=3e-3", "trainer.n_epochs=6"]
    exact = first_losses(make_trainer(tmp_path / "a", *options), monkeypatch)
    trainer = make_trainer(tmp_path / "b", *options, "trainer.amp=bfloat16_weights")
    rounded = first_losses(trainer, monkeypatch)
    assert rounded != exact  # it did compute in another precision
    learnt_db = (sum(exact[:3]) - sum(exact[-3:])) / 3
    assert learnt_db > 0.1
    assert rounded == pytest.approx(exact, abs=learnt_db / 2)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert {weight.dtype for weight in trainer.average.shadow.values()} == {torch.float32}


def test_steps_too_small_for_bfloat16_are_not_lost(tmp_path):
    """A weight of 1 moves by less than bfloat16 can tell from nothing (1/256)."""
    trainer = make_trainer(
        tmp_path, "trainer.amp=bfloat16_weights", "optimizer.lr=1e-5", "scheduler.warmup_steps=0"
    )
    start = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = [not torch.equal(weight, start[name]) for name, weight in trainer.model.named_parameters()]
    assert all(moved)


def test_a_network_that_is_not_written_for_it_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.amp=bfloat16_weights: Linear is not written for it"):
        HalfWeights(torch.nn.Linear(2, 2))


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.amp=half: choose one of auto, bfloat16"):
        make_trainer(tmp_path, "trainer.amp=half")


@pytest.mark.parametrize("has", [True, False])
def test_a_processor_that_emulates_it_is_named(tmp_path, monkeypatch, caplog, has):
    """It takes many times as long, which none would expect of half precision."""
    monkeypatch.setattr("src.trainer.base_trainer.has_bfloat16", lambda device: has)
    make_trainer(tmp_path, "trainer.amp=bfloat16_weights")
    assert ("take trainer.amp=off" in caplog.text) == (not has)


@pytest.mark.parametrize(
    ("amp", "device", "has", "expected"),
    [
        ("auto", "cuda", True, True),
        ("auto", "cuda", False, False),
        ("auto", "cpu", True, False),
        ("bfloat16", "cpu", False, True),
        ("off", "cuda", True, False),
    ],
)
def test_autocast_is_chosen_only_where_it_pays(monkeypatch, amp, device, has, expected):
    """Many a 16 GB card (a T4) has no bfloat16 and emulates it."""
    monkeypatch.setattr("src.trainer.base_trainer.has_bfloat16", lambda device: has)
    assert autocasts(amp, torch.device(device)) == expected
