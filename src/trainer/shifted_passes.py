"""A separator run several times over a mixture that is delayed a little, and the mean of its estimates.

What falls between two STFT frames in one pass falls into the middle of a frame in another, so that the errors of the
passes differ: the "shift trick" of Défossez et al., "Music Source Separation in the Waveform Domain", 2019, sec. 4.3.
Lips are moved as well where the separator weighs lags itself: a video frame late in one pass and early in another. And
where it can go on from the estimates of an earlier pass (`BandSeparator.refines`), it does.

Axes: B batch, S = 2 voices, T samples at 16 kHz, F video frames, D lip embedding.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.interpolation import late
from src.trainer.mixture_consistency import fit_gains
from src.trainer.order_check import OrderCheck, put_in_order
from src.trainer.windowing import is_swapped

_LONGEST = 256  # samples, the hop of our models: 16 ms, of which lips at 25 fps take no notice
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def delays(shifts: int) -> list[int]:
    """Samples by which the mixture is delayed in each pass: by the golden ratio spread over hops of 256 and of 128."""
    return [round(number * _GOLDEN_RATIO % 1 * _LONGEST) for number in range(shifts)]


def lip_lags(shifts: int, weighed_frames: int) -> list[int]:
    """Video frames that the lips come late by in each pass: one to minus one, if the separator weighs such lags."""
    if shifts == 1 or weighed_frames < 1:
        return [0] * shifts
    return [round(1 - 2 * number / (shifts - 1)) for number in range(shifts)]


class Separated(NamedTuple):
    """Mean of the passes.

    Attributes:
        estimates: (B, S, T), float32 on the CPU.
        order: (B,), log odds that the lips give the order that the estimates are in, a mean over the passes; None of a
            separator that tells none.
        exchanged: (B,), share of the time that a check exchanged the voices at the end; zeros without one.
    """

    estimates: Tensor
    order: Tensor | None
    exchanged: Tensor


def separate_shifted(
    model: nn.Module, batch: Mapping[str, Any], shifts: int, check: OrderCheck | None = None
) -> Separated:
    """Mean estimates of a separator over delayed passes.

    A model that refines is given what was found before it in every pass but the first, in the order that the check
    found. Of other models, where passes have the voices in different orders, those that are surer of the lips decide;
    where no lips tell the order, the first pass does.

    Args:
        model: called with the batch. Where it has `weighed_frames`, lips are moved by a frame if that is 1 or more;
            where `refines` is true, it takes `earlier`, estimates (B, S, T) whose order it keeps.
        batch: `mix` (B, T), `lengths` (B,), `visual` (B, S, F, D) and `visual_mask` (B, S) where there are lips, and
            what else the model takes.
        shifts: number of passes; 1 is the model as it is.
        check: looks at the order of the voices when they are apart; None leaves it to the separator.
    """
    refines = getattr(model, "refines", False)
    found: Separated | None = None
    for number, (delay, lag) in enumerate(
        zip(delays(shifts), lip_lags(shifts, getattr(model, "weighed_frames", 0)))
    ):
        delayed = {"mix": functional.pad(batch["mix"], (delay, 0)), "lengths": batch["lengths"] + delay}
        if lag and batch.get("visual") is not None:
            delayed["visual"] = late(batch["visual"], lag, dim=2)
        if refines and found is not None:
            found = _checked(found, batch, check)
            delayed["earlier"] = functional.pad(found.estimates, (delay, 0)).to(batch["mix"])
        outputs = model(**{**batch, **delayed})
        estimates, order = outputs["estimates"][..., delay:].float().cpu(), outputs.get("order")
        order = None if order is None else order.float().cpu()
        if found is None:
            found = Separated(estimates, None if order is None else order.abs(), torch.zeros(len(estimates)))
        else:
            found = _mean(found, estimates, order, number, ordered="earlier" in delayed)
    return _checked(_surer(found), batch, check)


def _mean(
    found: Separated, estimates: Tensor, order: Tensor | None, number: int, *, ordered: bool
) -> Separated:
    """The mean of what so many passes found and of one more, whose order is theirs already if it is `ordered`."""
    if not ordered:
        pairs = zip(found.estimates.numpy(), estimates.numpy())
        exchanged = torch.tensor([is_swapped(*pair) for pair in pairs])
        estimates = estimates.flip(1).where(exchanged[:, None, None], estimates)
        order = None if order is None else torch.where(exchanged, -order.abs(), order.abs())
    mean = (number * found.estimates + estimates) / (number + 1)
    if order is not None:
        order = (number * found.order + order) / (number + 1)
    return Separated(mean, order, found.exchanged)


def _surer(found: Separated) -> Separated:
    """In the order that the passes together are surer of."""
    if found.order is None:
        return found
    estimates = found.estimates.flip(1).where((found.order < 0)[:, None, None], found.estimates)
    return found._replace(estimates=estimates, order=found.order.abs())


def _checked(found: Separated, batch: Mapping[str, Any], check: OrderCheck | None) -> Separated:
    """In the order that a check finds."""
    if check is None or batch.get("visual") is None:
        return found
    # What each gets of the other is measured in what the mixture has of them.
    estimates = fit_gains(batch["mix"].float().cpu(), found.estimates)
    exchanged = check.exchanged(batch["mix"], estimates, batch["visual"], batch["visual_mask"], found.order)
    share = exchanged.mean(dim=1)
    order = None if found.order is None else (1 - 2 * share) * found.order
    return Separated(put_in_order(estimates, exchanged), order, share)
