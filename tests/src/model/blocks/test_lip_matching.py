"""Anonymous voices come out in the order of the lips that move with them."""

import pytest
import torch

from src.model.blocks.lip_matching import LipMatching

FRAMES, BANDS, CHANNELS = 120, 3, 4


@pytest.fixture
def matching() -> LipMatching:
    """One whose description of a voice is the first channel of its first band, at the frame itself."""
    block = LipMatching(CHANNELS, BANDS, 1, 1, context=1)
    block.norm = torch.nn.Identity()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.squeeze.weight[0, 0] = 1
        block.sound.weight[0, 0] = 10  # decided at once
    return block


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
        torch.testing.assert_close(matching(voices, lips, BOTH, 62.5), voices, atol=1e-3, rtol=0)
        swapped = matching(voices, lips.flip(1), BOTH, 62.5)
        torch.testing.assert_close(swapped, voices.flip(1), atol=1e-3, rtol=0)


def test_swapped_lips_give_the_other_order_whatever_the_odds(matching):
    voices, lips = moving()
    with torch.no_grad():
        matching.sound.weight.mul_(0.01)
        given = matching(voices, lips, BOTH, 62.5)
        torch.testing.assert_close(matching(voices, lips.flip(1), BOTH, 62.5), given.flip(1))
        assert not torch.allclose(given, voices, atol=0.1)


@pytest.mark.parametrize("present", [0, 1])
def test_one_pair_of_lips_is_enough(matching, present):
    voices, lips = moving()
    used = torch.zeros(1, 2, dtype=torch.bool)
    used[0, present] = True
    lips[:, 1 - present] = float("nan")  # what is absent must not be looked at
    with torch.no_grad():
        assert matching.evidence(voices, lips, used, 62.5) > 0
        assert matching.evidence(voices.flip(1), lips, used, 62.5) < 0


def test_without_lips_the_order_stays(matching):
    voices, lips = moving()
    assert torch.equal(matching(voices, lips, ~BOTH, 62.5), voices)


def test_evidence_grows_with_the_recording_and_not_with_its_offsets(matching):
    voices, lips = moving()
    with torch.no_grad():
        once = matching.evidence(voices, lips, BOTH, 62.5)
        twice = matching.evidence(voices.repeat(1, 1, 2, 1, 1), lips.repeat(1, 1, 2, 1), BOTH, 62.5)
        torch.testing.assert_close(twice, 2 * once)
        torch.testing.assert_close(matching.evidence(voices, lips + 9, BOTH, 62.5), once)
