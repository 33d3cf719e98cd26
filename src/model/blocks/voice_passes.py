"""One pass a voice: a network that extracts the voice of one pair of lips, run for both voices as one batch.

Axes: B batch, S voices, T samples, F video frames, D lip embedding.
"""

from collections.abc import Callable

from torch import Tensor

from src.model.blocks.voices import unit_level


def pass_per_voice(extract: Callable[[Tensor, Tensor], Tensor], mix: Tensor, lips: Tensor) -> Tensor:
    """Extract each voice from the mixture at unit RMS, and give it the mixture's level again.

    Nothing is shared between the passes, as in the papers: the cost is S times that of one voice.

    Args:
        extract: (B * S, T), (B * S, F, D) -> (B * S, T).

    Shape: mix (B, T), lips (B, S, F, D) -> (B, S, T).
    """
    unit, level = unit_level(mix)
    size, voices = lips.shape[:2]
    estimates = extract(unit.repeat_interleave(voices, dim=0), lips.flatten(0, 1))
    return estimates.unflatten(0, (size, voices)) * level[:, None]
