"""Time of steps, all of a run measured in turns.

The speed of a machine drifts (clock, other users). Steps that are to be compared are therefore run round-robin,
so that a slow minute hits all alike, and compared within one run.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

Name = TypeVar("Name", bound=Hashable)
BAR_AFTER_S = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one step: median, 10th and 90th percentile over the repeats, and the repeats themselves."""

    median_s: float
    p10_s: float
    p90_s: float
    runs_s: list[float]


def measure(
    steps: Mapping[Name, Callable[[], Any]], *, device: str, warmup: int, repeats: int, title: str = "timing"
) -> dict[Name, Timing]:
    """Time every step.

    Args:
        steps: by name; called without arguments.
        device: what is waited for before the clock is read.
        warmup: rounds that are not counted.
        repeats: rounds that are.
        title: of the progress bar.

    Returns:
        Timings by name, without the steps that the memory of a GPU does not suffice for.

    Raises:
        ValueError: no repeat, or a negative number of warm-up rounds.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(
            f"repeats={repeats}, warmup={warmup}: at least 1 repeat and 0 rounds of warm-up are needed"
        )
    seconds: dict[Name, list[float]] = {name: [] for name in steps}
    for turn in tqdm(range(warmup + repeats), desc=title, unit="round", delay=BAR_AFTER_S, disable=None):
        for name in list(seconds):
            try:
                elapsed = _run(steps[name], device)
            except torch.OutOfMemoryError:
                del seconds[name]
                continue
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: _summary(values) for name, values in seconds.items()}


def _run(step: Callable[[], Any], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    step()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _summary(values: list[float]) -> Timing:
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return Timing(float(median), float(p10), float(p90), values)
