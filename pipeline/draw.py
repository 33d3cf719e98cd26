"""Random draws of data sets and transforms, all from torch's generator, and the checks of their ranges."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def drawn_from(state: int) -> Iterator[None]:
    """What is drawn inside follows from ``state`` alone; what is drawn afterwards takes no notice of it."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPU as well, which the fork does not restore.
        torch.default_generator.manual_seed(state)
        yield


def chance(p: float) -> bool:
    """True with probability ``p``."""
    return float(torch.rand(())) < p


def uniform(low: float, high: float) -> float:
    """A number between both."""
    return low + (high - low) * float(torch.rand(()))


def integer(below: int) -> int:
    """A whole number in 0..below-1."""
    return int(torch.randint(below, ()))


def checked_probability(name: str, value: float) -> float:
    """Return ``value``.

    Raises:
        ValueError: it is no probability.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must lie in 0..1")
    return value


def checked_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Return ``value`` as (lowest, highest).

    Raises:
        ValueError: it is not two numbers in order.
    """
    bounds = tuple(float(bound) for bound in value)
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(f"{name}={list(bounds)}: must be [lowest, highest]")
    return bounds
