"""What all separators of two voices share around their network: number of voices, level, lips used, summary.

Axes: B batch, S = 2 voices, T samples, F video frames, D lip embedding.
"""

import torch
from torch import Tensor, nn

NUM_VOICES = 2


def unit_level(mix: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture scaled to unit RMS, and its RMS (floored at 1e-5) to scale the estimates back.

    Shape: (B, T) -> (B, T), (B, 1).
    """
    level = mix.square().mean(dim=-1, keepdim=True).add(1e-10).sqrt()
    return mix / level, level


def no_lips(mix: Tensor) -> Tensor:
    """The mask of a separator that uses no lips. Shape: (B, T) -> (B, S) bool, all false."""
    return mix.new_zeros((mix.shape[0], NUM_VOICES), dtype=torch.bool)


def lips_used(visual: Tensor | None, visual_mask: Tensor | None, mix: Tensor) -> Tensor:
    """Which voices are cued by lips: those that have them, where any were given.

    Shape: visual (B, S, F, D) or None, visual_mask (B, S) bool or None (all present), mix (B, T) -> (B, S) bool.
    """
    if visual is None or visual.shape[2] == 0:
        return no_lips(mix)
    return ~no_lips(mix) if visual_mask is None else visual_mask


def summary(model: nn.Module) -> str:
    """Layers, then the number of parameters."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{model!r}\nAll parameters: {total:,}\nTrainable parameters: {trainable:,}"
