"""Estimates of an earlier pass that trade places for a while, for a later pass to set right.

On the voices that it is trained on a separator hardly ever exchanges two voices midway, and a later pass that only saw
those would learn to trust its input. On new voices that are alike it does.

Axes: B batch, S = 2 voices, T samples at 16 kHz.
"""

import torch
from torch import Tensor

from src.datasets.lips import FRAME_SAMPLES

_SHORTEST, _LONGEST = 0.1, 0.6  # of the mixture
_LEAST, _MOST = 0.4, 1.4  # of the other voice; all from 1 on


def exchange_for_a_while(estimates: Tensor, share: float) -> Tensor:
    """Exchange the voices of some mixtures for a while each, at random and more or less.

    They change places over a video frame.

    Shape: estimates (B, S, T) -> (B, S, T), whose sum is the same.

    Args:
        estimates: of an earlier pass.
        share: of the mixtures, 0 to 1; 0 draws nothing.
    """
    if share == 0:
        return estimates
    batch_size, _, num_samples = estimates.shape
    chosen, length, centre, amount = torch.rand(4, batch_size, 1)
    half = (_SHORTEST + (_LONGEST - _SHORTEST) * length) * num_samples / 2
    distance = (torch.arange(num_samples) - centre * num_samples).abs()
    inside = ((half - distance) / FRAME_SAMPLES + 0.5).clamp(0, 1)
    amount = (_LEAST + (_MOST - _LEAST) * amount).clamp(max=1) * (chosen < share)
    weight = (amount * inside)[:, None].to(estimates)
    return torch.lerp(estimates, estimates.flip(1), weight)
