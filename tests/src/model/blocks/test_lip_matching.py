"""Anonymous voices come out in the order of the lips that move with them."""

import math

import pytest
import torch

from src.model.blocks.lip_matching import LipMatching

FRAMES, BANDS, CHANNELS = 120, 3, 4


def make_matching(max_lag: int = 0, step: int = 1) -> LipMatching:
    """One whose description of a voice is the first channel of its first band, at the frame itself."""
    block = LipMatching(CHANNELS, BANDS, 1, 1, max_lag, context=1, step=step)
    block.norm = torch.nn.Identity()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.squeeze.weight[0, 0] = 1
        block.sound.weight[0, 0] = 10  # decided at once,
        block.log_noise.fill_(-math.log(10))  # for lips are taken to move by little else
    return block


@pytest.fixture
def matching() -> LipMatching:
    return make_matching()


def ordered(matching, voices, lips, used):
    return matching(voices, order(matching, voices, lips, used), used)


def order(matching, voices, lips, used):
    return matching.evidence(voices, lips, used, 62.5).order


def moving(seed: int = 0):
    """Voices (1, 2, N, K, C) and lips (1, 2, N, 1) that move like them, above noise and offsets of their own."""
    generator = torch.Generator().manual_seed(seed)
    motion = torch.randn(2, FRAMES, generator=generator)
    voices = torch.randn(1, 2, FRAMES, BANDS, CHANNELS, generator=generator)
    voices[0, :, :, 0, 0] += motion + torch.tensor([[5.0], [-3.0]])
    lips = motion + torch.randn(2, FRAMES, generator=generator) + torch.tensor([[2.0], [7.0]])
    return voices, lips[None, ..., None]


BOTH = torch.tensor([[True, True]])


@pytest.mark.parametrize("seed", range(5))
def test_voices_take_the_order_of_the_lips(matching, seed):
    voices, lips = moving(seed)
    with torch.no_grad():
        torch.testing.assert_close(ordered(matching, voices, lips, BOTH), voices, atol=1e-3, rtol=0)
        swapped = ordered(matching, voices, lips.flip(1), BOTH)
        torch.testing.assert_close(swapped, voices.flip(1), atol=1e-3, rtol=0)


def test_swapped_lips_give_the_other_order_whatever_the_odds(matching):
    voices, lips = moving()
    with torch.no_grad():
        matching.sound.weight.mul_(0.01)
        given = ordered(matching, voices, lips, BOTH)
        torch.testing.assert_close(ordered(matching, voices, lips.flip(1), BOTH), given.flip(1))
        assert not torch.allclose(given, voices, atol=0.1)


@pytest.mark.parametrize("present", [0, 1])
def test_one_pair_of_lips_is_enough(matching, present):
    voices, lips = moving()
    used = torch.zeros(1, 2, dtype=torch.bool)
    used[0, present] = True
    lips[:, 1 - present] = float("nan")  # what is absent must not be looked at
    with torch.no_grad():
        assert order(matching, voices, lips, used) > 0
        assert order(matching, voices.flip(1), lips, used) < 0


def test_without_lips_the_order_stays(matching):
    voices, lips = moving()
    assert torch.equal(ordered(matching, voices, lips, ~BOTH), voices)


def test_evidence_grows_with_the_recording_and_not_with_its_offsets(matching):
    voices, lips = moving()
    with torch.no_grad():
        once = order(matching, voices, lips, BOTH)
        twice = order(matching, voices.repeat(1, 1, 2, 1, 1), lips.repeat(1, 1, 2, 1), BOTH)
        torch.testing.assert_close(twice, 2 * once)
        torch.testing.assert_close(order(matching, voices, lips + 9, BOTH), once)


@pytest.mark.parametrize("lags", [(0, 0), (4, 4), (-3, 2), (6, -6)])
@pytest.mark.parametrize("exchanged", [False, True])
def test_lips_out_of_step_are_matched_and_brought_into_step(lags, exchanged):
    """Lag: frames that lips come after the sound."""
    voices, lips = moving()
    late = torch.stack([own.roll(lag, 0) for own, lag in zip(lips[0], lags)])[None]
    if exchanged:
        voices = voices.flip(1)
    matching = make_matching(max_lag=6)
    with torch.no_grad():
        evidence = matching.evidence(voices, late, BOTH, 62.5)
        assert (evidence.order < 0).item() == exchanged and abs(evidence.order) > 4
        torch.testing.assert_close(evidence.lags.sum(-1), torch.ones(1, 2))
        assert evidence.lags.argmax(-1)[0].tolist() == [6 + lag for lag in lags]
        mended = matching.in_step(late, evidence.lags)
        torch.testing.assert_close(mended[:, :, 12:-12], lips[:, :, 12:-12], atol=0.1, rtol=0)


def test_without_a_lag_late_lips_tell_nothing(matching):
    voices, lips = moving()
    with torch.no_grad():
        in_step = order(matching, voices, lips, BOTH)
        assert abs(order(matching, voices, lips.roll(5, 2), BOTH)) < in_step / 4


@pytest.mark.parametrize("present", [0, 1])
def test_a_voice_that_moves_more_is_not_likelier_for_it(present):
    """One mouth, whose voice moves as it does; the other voice moves four times as much, partly alike."""
    voices, lips = moving()
    voices[0, present, :, 0, 0] = lips[0, present, :, 0]
    voices[0, 1 - present, :, 0, 0] = 4 * (0.5 * lips[0, present, :, 0] + torch.randn(FRAMES))
    used = torch.zeros(1, 2, dtype=torch.bool)
    used[0, present] = True
    matching = make_matching()
    with torch.no_grad():
        assert order(matching, voices, lips, used) > 0
        assert order(matching, voices.flip(1), lips, used) < 0


def test_other_lips_do_not_need_to_be_there_for_a_lag_to_be_found():
    voices, lips = moving()
    used = torch.tensor([[True, False]])
    lips[:, 1] = float("nan")
    matching = make_matching(max_lag=6)
    with torch.no_grad():
        evidence = matching.evidence(voices, lips.roll(3, 2), used, 62.5)
    assert evidence.order > 2 and evidence.lags[0, 0].argmax() == 9
    torch.testing.assert_close(evidence.lags[0, 1], torch.full((13,), 1 / 13))


def test_a_hop_half_as_long_at_twice_the_step_tells_the_same():
    voices, lips = moving()
    lips = lips.roll(4, 2)
    finer = voices.repeat_interleave(2, 2), lips.repeat_interleave(2, 2)
    coarse, fine = make_matching(max_lag=6), make_matching(max_lag=6, step=2)
    with torch.no_grad():
        evidence, again = (
            coarse.evidence(voices, lips, BOTH, 62.5, across=True),
            fine.evidence(*finer, BOTH, 125.0, across=True),
        )
        torch.testing.assert_close(again.order, evidence.order)
        torch.testing.assert_close(again.lags, evidence.lags)
        torch.testing.assert_close(again.likelihood, evidence.likelihood)
        mended = fine.in_step(finer[1], again.lags)
        expected = coarse.in_step(lips, evidence.lags).repeat_interleave(2, 2)
        torch.testing.assert_close(mended[:, :, 24:-24], expected[:, :, 24:-24])
