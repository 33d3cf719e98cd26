"""The map from lips to what goes with the voice, on voices whose level is known to move with hidden lips."""

import pytest
import torch

from src.model.blocks.lip_fusion import LipEncoder
from src.trainer.synchrony import CONTEXT, fit_synchrony

FRAMES, DIM = 50, 24
MIXING = torch.randn(DIM, generator=torch.Generator().manual_seed(7))


def voices(num: int, seed: int, *, moving: bool = True):
    """Noise whose level follows a hidden opening; lips hold it in one direction, below a face and other movement."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(num):
        opening = torch.rand(FRAMES + 4, generator=generator).unfold(0, 5, 1).mean(1)
        level = opening if moving else torch.rand(FRAMES, generator=generator)
        audio = (
            torch.randn(FRAMES * 640, generator=generator) * (8 * level).exp().repeat_interleave(640) / 1000
        )
        face = 30 * torch.randn(DIM, generator=generator)
        lips = opening[:, None] * MIXING + face + 0.5 * torch.randn(FRAMES, DIM, generator=generator)
        made.append((audio, lips, opening))
    return made


def pairs(made):
    return lambda: iter([(audio, lips, 1.0) for audio, lips, _ in made])


def components(projection, lips):
    encoder = LipEncoder(DIM, 4, synchronous=len(projection), learnt=0, dropout=0.0)
    encoder.fit(projection, torch.ones(len(projection)))
    motion = (lips - lips.mean(0)).T[None]
    return torch.nn.functional.conv1d(motion, encoder.synchrony, padding=CONTEXT // 2)[0]


def correlation(one, other):
    return torch.corrcoef(torch.stack([one, other]))[0, 1].abs().item()


def test_finds_what_moves_with_the_voice_on_voices_it_has_not_seen():
    fitted = fit_synchrony(pairs(voices(40, seed=1)), 3)
    assert fitted.projection.shape == (3, DIM, CONTEXT)
    assert fitted.correlations[0] > 0.8
    unseen = voices(10, seed=2)
    found = [correlation(components(fitted.projection, lips)[0], opening) for _, lips, opening in unseen]
    assert min(found) > 0.7 and sum(found) / 10 > 0.85, found


def test_components_have_unit_variance_and_are_uncorrelated():
    made = voices(40, seed=1)
    fitted = fit_synchrony(pairs(made), 3)
    outputs = torch.cat([components(fitted.projection, lips) for _, lips, _ in made], dim=1)
    # The ridge takes a little of the variance.
    torch.testing.assert_close(outputs @ outputs.T / outputs.shape[1], torch.eye(3), atol=0.2, rtol=0)


def test_a_speaker_heard_often_weighs_as_much_as_one_heard_rarely():
    """Two faces move oppositely, one of them with twenty times the voices: balanced, no direction serves both."""
    often = [(audio, -lips) for audio, lips, _ in voices(100, seed=4)]
    rarely = [(audio, lips) for audio, lips, _ in voices(5, seed=5)]
    alike = [(*voice, 1.0) for voice in [*often, *rarely]]
    balanced = [(*voice, 1 / len(group)) for group in (often, rarely) for voice in group]
    found = [fit_synchrony(lambda made=made: iter(made), 1).correlations[0] for made in (alike, balanced)]
    assert found[0] > found[1] + 0.3, found


def test_what_is_kept_of_the_correlation_is_measured_on_other_voices():
    made = voices(40, seed=1)
    assert fit_synchrony(pairs(made), 2).kept.tolist() == [1, 1]
    same = fit_synchrony(pairs(made), 2, unseen=pairs(made))
    torch.testing.assert_close(same.kept, torch.ones(2))
    assert fit_synchrony(pairs(made), 2, unseen=pairs([])).kept.tolist() == [1, 1]
    others = fit_synchrony(pairs(made), 2, unseen=pairs(voices(40, seed=2)))
    assert others.kept[0] > 0.9
    nothing = fit_synchrony(pairs(made), 2, unseen=pairs(voices(40, seed=2, moving=False)))
    assert nothing.kept[0] < 0.2


def test_training_lips_are_worth_as_much_as_those_of_other_faces():
    """Whether both mouths are seen, one, or those of a few mixtures alone."""
    encoder = LipEncoder(DIM, 4, synchronous=1, learnt=0, dropout=0.0)
    encoder.fit(torch.randn(1, DIM, CONTEXT) / 10, torch.tensor([0.6]))
    both, first, few = (torch.ones(200, 2, dtype=torch.bool) for _ in range(3))
    first[:, 1] = False
    few[1:50] = few[51:] = False
    for used in (both, first, few):
        visual = torch.randn(200, 2, 400, DIM) * used[..., None, None]
        plain, worse = _directions(encoder, visual, used)
        assert correlation(plain.flatten(), worse.flatten()) == pytest.approx(0.6, abs=0.05)
        assert (worse.std() / plain.std()).item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("seen", [1, 2])
def test_training_lips_of_a_single_mixture_are_no_better(seen):
    encoder = LipEncoder(DIM, 4, synchronous=1, learnt=0, dropout=0.0)
    encoder.fit(torch.randn(1, DIM, CONTEXT) / 10, torch.tensor([0.6]))
    used = torch.arange(2)[None] < seen
    plain, worse = _directions(encoder, torch.randn(1, 2, 4000, DIM), used)
    for one, other in zip(plain, worse):
        assert correlation(one.flatten(), other.flatten()) == pytest.approx(0.6, abs=0.07)
        assert (other.std() / one.std()).item() == pytest.approx(1, abs=0.07)


@torch.no_grad()
def _directions(encoder, visual, used):
    """Of the streams that are used, as they are and as they are trained with."""
    plain = encoder.eval()(visual, used, visual.shape[2], 640)[1]
    return plain[used], encoder.train()(visual, used, visual.shape[2], 640)[1][used]


def test_lips_that_do_not_go_with_the_voice_promise_nothing():
    fitted = fit_synchrony(pairs(voices(40, seed=3, moving=False)), 2)
    assert fitted.correlations.max() < 0.4


def test_too_little_to_fit_says_what_to_do_instead():
    with pytest.raises(ValueError, match=r"150 frames.*model\.synchronous=0"):
        fit_synchrony(pairs(voices(3, seed=1)), 2)
    with pytest.raises(ValueError, match=r"model\.synchronous=0 and model\.learnt=0"):
        LipEncoder(DIM, 4, synchronous=0, learnt=0, dropout=0.0)
