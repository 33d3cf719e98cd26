"""Frames of a voice look for frames like them, in both voices, within reach."""

import pytest
import torch
from torch.nn import functional

from src.model.blocks import voice_attention
from src.model.blocks.voice_attention import VoiceAttention

WIDTH, HEADS, CHANNELS = 12, 2, 4


@pytest.fixture
def attention() -> VoiceAttention:
    torch.manual_seed(0)
    block = VoiceAttention(WIDTH, HEADS, CHANNELS)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return block.requires_grad_(False)


def frames(num_frames: int, mixtures: int = 2) -> torch.Tensor:
    return torch.randn(2 * mixtures, num_frames, WIDTH, generator=torch.Generator().manual_seed(1))


def by_definition(block: VoiceAttention, frames: torch.Tensor, reach: int) -> torch.Tensor:
    """Frame by frame and head by head."""
    out = torch.empty_like(frames)
    for row in range(len(frames)):
        own, other = frames[row], frames[row ^ 1]
        for n in range(frames.shape[1]):
            near = slice(max(0, n - reach), n + reach + 1)
            found = []
            for head in range(HEADS):
                part = slice(head * CHANNELS, (head + 1) * CHANNELS)
                query, keys, others = (
                    functional.normalize(x @ weight[part].T, dim=-1) * CHANNELS**0.5
                    for x, weight in (
                        (own[n], block.query.weight),
                        (own[near], block.key.weight),
                        (other[near], block.key.weight),
                    )
                )
                sharp = block.sharpness[head] / CHANNELS**0.5
                scores = torch.cat([keys @ query * sharp, others @ query * sharp + block.nearness[head]], -1)
                a, b = scores.flatten().softmax(0).chunk(2)
                value = block.value.weight[part]
                found += [a @ own[near] @ value.T, b @ other[near] @ value.T, a.sum()[None]]
            out[row, n] = block.out(torch.cat(found))
    return out


@pytest.mark.parametrize(("num_frames", "reach"), [(1, 3), (4, 3), (5, 3), (8, 3), (23, 3), (20, 100)])
def test_it_is_what_it_is_said_to_be(attention, monkeypatch, num_frames, reach):
    monkeypatch.setattr(voice_attention, "REACH_FRAMES", reach)
    x = frames(num_frames)
    torch.testing.assert_close(attention(x), by_definition(attention, x, reach), atol=1e-5, rtol=1e-4)


def test_swapped_voices_swap_what_is_added(attention):
    x = frames(30)
    swapped = (
        attention(x.unflatten(0, (2, 2)).flip(1).flatten(0, 1)).unflatten(0, (2, 2)).flip(1).flatten(0, 1)
    )
    torch.testing.assert_close(swapped, attention(x))


def test_mixtures_of_a_batch_see_nothing_of_each_other(attention):
    x = frames(30)
    torch.testing.assert_close(attention(x)[:2], attention(x[:2]))


def test_a_frame_sees_as_far_in_a_long_recording_as_in_training(attention):
    length = 3 * voice_attention.REACH_FRAMES
    x = frames(length, mixtures=1)
    changed = x.clone()
    changed[:, 0] += 1
    seen = (attention(changed) != attention(x)).any(dim=2).any(dim=0)
    assert (
        seen[: voice_attention.REACH_FRAMES + 1].all() and not seen[voice_attention.REACH_FRAMES + 1 :].any()
    )


def test_it_begins_by_adding_nothing_and_learns():
    block = VoiceAttention(WIDTH, HEADS)
    added = block(frames(10))
    assert not added.any()
    added.sum().backward()
    assert block.out.weight.grad.any()


def test_half_precision_runs_throughout(attention):
    x = frames(30)
    half = attention.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attention.float()(x.bfloat16().float()), atol=0.15, rtol=0.1)
