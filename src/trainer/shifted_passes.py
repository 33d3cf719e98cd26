"""A separator run several times over a mixture that is delayed a little, and the mean of its estimates.

What falls between two STFT frames in one pass falls into the middle of a frame in another, so that the errors of the
passes differ: the "shift trick" of Défossez et al., "Music Source Separation in the Waveform Domain", 2019, sec. 4.3.

Axes: B batch, S = 2 voices, T samples at 16 kHz.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.trainer.windowing import is_swapped

_LONGEST = 256  # samples, the hop of our models: 16 ms, of which lips at 25 fps take no notice
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def delays(shifts: int) -> list[int]:
    """Samples by which the mixture is delayed in each pass: by the golden ratio spread over hops of 256 and of 128."""
    return [round(number * _GOLDEN_RATIO % 1 * _LONGEST) for number in range(shifts)]


class Separated(NamedTuple):
    """Mean of the passes.

    Attributes:
        estimates: (B, S, T), float32 on the CPU.
        order: (B,), mean log odds that the lips gave the estimates the order that they are in; None of a separator that
            tells none.
    """

    estimates: Tensor
    order: Tensor | None


def separate_shifted(model: nn.Module, batch: Mapping[str, Any], shifts: int) -> Separated:
    """Mean estimates of a separator over delayed passes.

    The order of the voices is that of the first pass: where no lips tell it, each pass has one of its own.

    Args:
        model: called with the batch.
        batch: `mix` (B, T), `lengths` (B,), and what else the model takes.
        shifts: number of passes; 1 is the model as it is.
    """
    passes, orders = [], []
    for delay in delays(shifts):
        delayed = {"mix": functional.pad(batch["mix"], (delay, 0)), "lengths": batch["lengths"] + delay}
        outputs = model(**{**batch, **delayed})
        estimates = outputs["estimates"][..., delay:].float().cpu()
        first = passes[0] if passes else estimates
        exchanged = torch.tensor([is_swapped(*pair) for pair in zip(first.numpy(), estimates.numpy())])
        passes.append(estimates.flip(1).where(exchanged[:, None, None], estimates))
        if "order" in outputs:
            certainty = outputs["order"].float().abs().cpu()
            orders.append(torch.where(exchanged, -certainty, certainty))
    return Separated(sum(passes) / shifts, sum(orders) / shifts if orders else None)
