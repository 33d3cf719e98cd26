"""Voices that change places for a while are put back where their lips say so."""

import math

import pytest
import torch

from src.model.blocks.lip_matching import LipMatching
from src.model.blocks.lip_tracking import LipTracking

FRAMES, BANDS, CHANNELS = 120, 3, 4
BOTH = torch.tensor([[True, True]])


@pytest.fixture
def voices() -> torch.Tensor:
    return torch.randn(1, 2, FRAMES, BANDS, CHANNELS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tracking() -> LipTracking:
    """One that goes by stretches of nine frames."""
    return LipTracking({9: 10.0, 2 * FRAMES + 1: 0.0})


def changed(start: int, stop: int) -> torch.Tensor:
    """Evidence (1, N) for the order, but against it in some frames."""
    evidence = torch.ones(1, FRAMES)
    evidence[:, start:stop] = -1
    return evidence


def test_voices_change_places_where_they_move_with_the_other_lips(tracking, voices):
    tracked = tracking(voices, changed(40, 80), BOTH)
    expected = voices.clone()
    expected[:, :, 40:80] = voices[:, :, 40:80].flip(1)
    torch.testing.assert_close(tracked, expected, atol=1e-3, rtol=0)


def test_a_moment_that_is_too_short_is_passed_over(tracking, voices):
    torch.testing.assert_close(tracking(voices, changed(40, 43), BOTH), voices, atol=1e-3, rtol=0)


def test_what_is_said_far_around_may_count(voices):
    tracking = LipTracking({9: 1.0, 2 * FRAMES + 1: 4.0})
    torch.testing.assert_close(tracking(voices, changed(40, 60), BOTH), voices, atol=1e-3, rtol=0)


def test_without_lips_voices_stay(tracking, voices):
    assert torch.equal(tracking(voices, changed(40, 80), ~BOTH), voices)


def test_one_frame_is_enough(tracking, voices):
    torch.testing.assert_close(
        tracking(voices[:, :, :1], torch.ones(1, 1), BOTH), voices[:, :, :1], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("present", [[True, True], [True, False], [False, True], [False, False]])
def test_frames_add_up_to_the_odds_of_the_recording(voices, present):
    torch.manual_seed(0)
    matching = LipMatching(CHANNELS, BANDS, 2, 5, hidden=8)
    with torch.no_grad():
        matching.log_noise.normal_()
    lips, used = torch.randn(1, 2, FRAMES, 5), torch.tensor([present])
    order = matching.evidence(voices, lips, used, 62.5).order
    frames = matching.by_frame(voices, lips, used, 62.5)
    assert frames.shape == (1, FRAMES)
    torch.testing.assert_close(frames.sum(dim=1), order, atol=1e-4, rtol=1e-4)
    assert bool(frames.any()) == any(present)


def test_a_hop_half_as_long_at_twice_the_step_tells_the_same(voices):
    torch.manual_seed(0)
    matching, finer = (LipMatching(CHANNELS, BANDS, 2, 5, step=step) for step in (1, 2))
    finer.load_state_dict(matching.state_dict())
    lips = torch.randn(1, 2, FRAMES, 5)
    frames = matching.by_frame(voices, lips, BOTH, 62.5)
    twice = [part.repeat_interleave(2, dim=2)[:, :, : 2 * FRAMES - 1] for part in (voices, lips)]
    torch.testing.assert_close(
        finer.by_frame(*twice, BOTH, 125.0),
        frames.repeat_interleave(2, dim=1)[:, :-1] / 2,
        atol=1e-6,
        rtol=1e-4,
    )


def test_math_of_a_frame():
    """m v - v^2 / 2 in units of the noise, for each voice and mouth, the right pairs less the wrong ones."""
    matching = LipMatching(1, 1, 1, 1, context=1)
    matching.norm = torch.nn.Identity()
    with torch.no_grad():
        for parameter in matching.parameters():
            parameter.fill_(1 if parameter.ndim > 1 else 0)
        matching.log_noise.fill_(math.log(3))
    first, second, mouth = 2.0, -1.0, 0.5
    voices = torch.tensor([[first, -first], [second, -second]])[None, ..., None, None]
    lips = torch.tensor([[mouth, -mouth], [9.0, 4.0]])[None, ..., None]
    frames = matching.by_frame(voices, lips, torch.tensor([[True, False]]), 1.0)
    expected = (first * mouth - 3 * first**2 / 2) - (second * mouth - 3 * second**2 / 2)
    torch.testing.assert_close(frames, torch.tensor([[expected, expected]]))
