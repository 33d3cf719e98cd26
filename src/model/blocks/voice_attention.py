"""Attention along time over the frames of two voices.

Axes: B batch, S = 2 voices, N STFT frames, M of them within reach, H full-band features, A heads, E channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.voices import NUM_VOICES

REACH_FRAMES = 125  # to either side: 2 s at a hop of 16 ms, as much as mixtures in training have


class VoiceAttention(nn.Module):
    """Every frame of a voice looks for frames like it, among those of the same voice and of the other at once.

    Convolutions know neighbours alone; two voices that are alike are told apart by what each sounded like elsewhere.
    How much of the attention stays with the own voice is told as well: it says whose a frame is. Symmetric, so that
    swapping the voices swaps the outputs. The reach is limited, so that the cost grows linearly with a recording.
    Queries and keys have unit level (Henry et al., "Query-Key Normalization for Transformers", 2020).

    Args:
        width: H.
        heads, head_channels: A and E.
    """

    def __init__(self, width: int, heads: int, head_channels: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (
            nn.Linear(width, heads * head_channels, bias=False) for _ in range(3)
        )
        self.sharpness = nn.Parameter(torch.ones(heads, 1, 1))
        self.nearness = nn.Parameter(torch.zeros(heads, 1, 1))  # of the other voice's frames
        self.out = nn.Linear(heads * (2 * head_channels + 1), width)
        self.begin_as_identity()

    def begin_as_identity(self) -> None:
        """Let nothing be added, as in a block of a separator that was trained without."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """What to add to the frames. Shape: (B S, N, H), both voices of a mixture side by side -> the same."""
        query, key, value = (
            project(frames).unflatten(2, (self.heads, -1)).transpose(1, 2).unflatten(0, (-1, NUM_VOICES))
            for project in (self.query, self.key, self.value)
        )  # (B, S, A, N, E)
        channels = query.shape[-1:]
        query = functional.rms_norm(query, channels) * (self.sharpness * channels[0] ** -0.5)
        key = functional.rms_norm(key, channels)
        num_frames, length = frames.shape[1], REACH_FRAMES + 1
        found = []
        for start in range(0, num_frames, length):
            first = max(0, start - REACH_FRAMES)
            near = slice(first, start + length + REACH_FRAMES)
            asked = query[..., start : start + length, :]
            beyond = None
            if num_frames > length:
                lag = _positions(asked, start)[:, None] - _positions(key[..., near, :], first)
                beyond = (lag.abs() > REACH_FRAMES).repeat(1, NUM_VOICES)
            found.append(self._found(asked, key[..., near, :], value[..., near, :], beyond))
        return self.out(torch.cat(found, dim=3).transpose(2, 3).flatten(3).flatten(0, 1))

    def _found(self, query: Tensor, key: Tensor, value: Tensor, beyond: Tensor | None) -> Tensor:
        """Shape: (B, S, A, N, E), twice (B, S, A, M, E), (N, S M) bool -> (B, S, A, N, 2 E + 1).

        The scores of the other voice's frames, what is found in them and the share of the own voice's are further
        channels of the two products: the large matrix between is touched by nothing else but its softmax.
        """
        one = torch.ones_like(key[..., :1])
        zero, nothing = torch.zeros_like(one), torch.zeros_like(value)
        keys = _both(torch.cat([key, zero], dim=-1), torch.cat([key.flip(1), one * self.nearness], dim=-1))
        values = _both(
            torch.cat([value, nothing, one], dim=-1), torch.cat([nothing, value.flip(1), zero], dim=-1)
        )
        scores = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1) @ keys.transpose(-1, -2)
        if beyond is not None:
            scores = scores.masked_fill(beyond, float("-inf"))
        return scores.softmax(-1) @ values


def _both(own: Tensor, other: Tensor) -> Tensor:
    """Shape: twice (B, S, A, M, E) -> (B, S, A, 2 M, E)."""
    return torch.cat([own, other], dim=-2)


def _positions(frames: Tensor, first: int) -> Tensor:
    """Shape: (..., N, E) -> (N,)."""
    return torch.arange(first, first + frames.shape[-2], device=frames.device)
