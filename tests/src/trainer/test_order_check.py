"""Voices that came out in the wrong order are told by the lips, once they are apart."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.default_weights import SHIPPED
from pipeline.lipreading.weights import WeightsError
from pipeline.synchrony.halves import SOUND_FILE
from src.trainer.order_check import OrderCheck, open_order_check, put_in_order, smoothed
from src.trainer.separator import SHIPPED as SHIPPED_SEPARATOR
from src.trainer.separator import load_separator

FRAMES = 50


class Loudness(nn.Module):
    """Stands in for the sound encoder: log energy of eight stretches of the spectrum, 25 times a second."""

    def forward(self, mel):
        return mel.unflatten(-1, (-1, 4)).mean(-1).unflatten(1, (8, 5)).mean(2)


def voices(seed=0, frames=FRAMES):
    """Two voices of noise whose loudness changes 25 times a second, and lips that open with it.

    Shape: (1, 2, T), (1, 2, F, D).
    """
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.rand(2, frames, generator=generator) + 0.05
    noise = torch.randn(2, frames * 640, generator=generator)
    return (noise * loudness.repeat_interleave(640, dim=1))[None], loudness.log()[None, :, :, None].expand(
        -1, -1, -1, 8
    )


def check(estimates, visual, used=(True, True), **more):
    """Probability of the other order, (F,)."""
    heard = OrderCheck(Loudness())
    return heard.exchanged(estimates.sum(1), estimates, visual, torch.tensor([used]), **more)[0]


def stays(exchanged):
    return bool((exchanged < 0.1).all())


def goes(exchanged):
    return bool((exchanged > 0.9).all())


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("lag", [-2, 0, 1])
@pytest.mark.parametrize("gain", [1.0, 1e-3])
def test_the_order_is_that_of_the_lips_at_any_level_and_a_little_out_of_step(used, lag, gain):
    estimates, visual = voices()
    visual = visual.roll(lag, dims=2)
    assert stays(check(gain * estimates, visual, used))
    assert goes(check(gain * estimates.flip(1), visual, used))


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_voices_that_change_places_for_a_while_are_put_back(used):
    estimates, visual = voices(frames=150)
    between = slice(60 * 640, 110 * 640)
    mixed_up = estimates.clone()
    mixed_up[..., between] = estimates.flip(1)[..., between]
    exchanged = check(mixed_up, visual, used)
    assert stays(exchanged[:50]) and goes(exchanged[70:100]) and stays(exchanged[125:])
    mended = put_in_order(mixed_up, exchanged[None])
    before, after = ((found - estimates).square().mean() for found in (mixed_up, mended))
    assert after < before / 4


def test_without_lips_or_in_less_than_a_second_the_order_stays():
    estimates, visual = voices()
    assert not check(estimates.flip(1), visual, (False, False)).any()
    estimates, visual = voices(frames=24)
    assert not check(estimates.flip(1), visual).any()


def test_a_separator_that_is_sure_is_believed():
    estimates, visual = voices()
    assert goes(check(estimates.flip(1), visual, order=torch.tensor([0.1])))
    assert stays(check(estimates.flip(1), visual, order=torch.tensor([1000.0])))


def test_each_window_of_a_batch_is_checked_for_itself():
    (first, lips), (second, other_lips) = voices(1), voices(2)
    estimates, visual = torch.cat([first.flip(1), second]), torch.cat([lips, other_lips])
    found = OrderCheck(Loudness()).exchanged(estimates.sum(1), estimates, visual, torch.ones(2, 2).bool())
    assert goes(found[0]) and stays(found[1])


def test_silence_is_as_likely_in_one_order_as_in_the_other():
    _, visual = voices()
    torch.testing.assert_close(check(torch.zeros(1, 2, FRAMES * 640), visual), torch.full((FRAMES,), 0.5))


def test_the_odds_of_a_frame_are_those_of_all_ways_through_the_window():
    odds, changes = torch.tensor([[2.0, -1.0, 0.5, -3.0, 1.0]]), 0.2
    weight = torch.zeros(2, odds.shape[1])  # of all sequences with a frame in the state
    for states in itertools.product((0, 1), repeat=odds.shape[1]):
        moves = sum(a != b for a, b in itertools.pairwise(states))
        stays = odds.shape[1] - 1 - moves
        likelihood = math.prod(odd.exp() ** (1 - state) for odd, state in zip(odds[0], states))
        for frame, state in enumerate(states):
            weight[state, frame] += likelihood * changes**moves * (1 - changes) ** stays
    torch.testing.assert_close(smoothed(odds, changes)[0], (weight[0] / weight[1]).log())


def test_the_sum_of_the_voices_is_kept():
    estimates = torch.randn(1, 2, 1000)
    mended = put_in_order(estimates, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(mended.sum(1), estimates.sum(1))
    torch.testing.assert_close(mended[..., :320], estimates[..., :320])
    torch.testing.assert_close(mended[..., 960:], estimates.flip(1)[..., 960:])


def test_what_ships_has_a_check(tmp_path):
    separator = load_separator(SHIPPED_SEPARATOR)
    assert open_order_check(separator) is not None
    assert open_order_check(separator, wanted=False) is None
    assert open_order_check(replace(separator, front_end=None), wanted=True) is None
    alone = shutil.copy(SHIPPED, tmp_path)
    assert open_order_check(separator, weights=alone) is None  # its other half is not beside it
    sound = SHIPPED.with_name(SOUND_FILE)
    save_file(load_file(sound), tmp_path / SOUND_FILE, metadata={"steps": "1"})
    assert open_order_check(separator, weights=alone) is None  # that of another training
    (tmp_path / SOUND_FILE).write_bytes(sound.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=SOUND_FILE):
        open_order_check(separator, weights=alone)
    for differing in ({"features": "frontend", "dim": 128}, {"weights_sha256": "0" * 64}):
        others = replace(separator, front_end={**separator.front_end, **differing})
        assert open_order_check(others, wanted=True) is None
    with pytest.raises(ValueError, match="check_order=maybe"):
        open_order_check(separator, wanted="maybe")


def test_a_separator_of_another_training_is_checked_on_demand_alone(tmp_path):
    separator = load_separator(SHIPPED_SEPARATOR)
    copied = replace(separator, path=Path(shutil.copy(SHIPPED_SEPARATOR, tmp_path / "mine.safetensors")))
    assert open_order_check(copied) is not None  # under any name
    (tmp_path / "other.safetensors").write_bytes(b"another training")
    trained = replace(separator, path=tmp_path / "other.safetensors")
    assert open_order_check(trained) is None
    assert open_order_check(trained, wanted=True) is not None
