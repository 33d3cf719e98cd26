"""Confidence intervals of means by resampling whole groups.

Axes: N values, G groups, R resamples.
"""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: np.ndarray,
    groups: Sequence[str],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean under the cluster bootstrap.

    Groups are drawn with replacement, as many as there are, and bring all their values with them. Values that share
    a speaker, a clip or a file are not independent; resampling them one by one gives intervals that are too narrow.
    The same input gives the same interval, whatever the order of its groups.

    Args:
        values: one a voice; NaN values are left out.
        groups: label of each value.
        level: coverage.
        num_resamples: R.
        seed: of the generator.

    Shape:
        values (N,), groups of length N

    Returns:
        Lower and upper end; NaN where fewer than two groups have a value.

    Reference:
        Davison and Hinkley, "Bootstrap Methods and their Application", 1997, sec. 3.8.
    """
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    labels = np.asarray(groups, dtype=str)[defined]
    names, members = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    sums = np.bincount(members, weights=values[defined])  # (G,)
    counts = np.bincount(members)
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    # In blocks: all draws at once would be R x G numbers.
    block = max(1, 1_000_000 // len(names))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        draws = generator.integers(len(names), size=(size, len(names)))  # (R, G)
        means[start : start + size] = sums[draws].sum(1) / counts[draws].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
