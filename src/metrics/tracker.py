"""Weighted averages of losses and metrics over an epoch, alone or over all ranks."""

import math

import torch
import torch.distributed as dist

from src.metrics.base_metric import BatchMean


class MetricTracker:
    """Running means, weighted by the number of items behind each update.

    Values without meaning (NaN of a metric that has no value on a batch) change no mean; they are counted in
    `undefined`.
    """

    def __init__(self, *keys: str, writer=None):
        """
        Args:
            keys: names known from the start; others join at their first update.
            writer: experiment writer that receives every single update as a scalar. None: nothing is written,
                the caller logs the means.
        """
        self.writer = writer
        self._initial_keys = keys
        self.reset()

    def reset(self) -> None:
        """Forget all values; the keys given at construction stay."""
        self._totals = dict.fromkeys(self._initial_keys, 0.0)
        self._weights = dict.fromkeys(self._initial_keys, 0.0)
        self._undefined = dict.fromkeys(self._initial_keys, 0)

    def update(self, key: str, value: float, n: float = 1) -> None:
        """Add the mean ``value`` of ``n`` items.

        A `BatchMean` weighs only as much of ``n`` as the share of its voices that have a value.

        Args:
            key: name of the metric.
            value: mean over the items; NaN counts as undefined and weighs nothing.
            n: number of items, the batch size for metrics of a batch.
        """
        self._totals.setdefault(key, 0.0)
        self._weights.setdefault(key, 0.0)
        self._undefined.setdefault(key, 0)
        if isinstance(value, BatchMean):
            self._undefined[key] += value.undefined
            n = n * value.count / max(value.count + value.undefined, 1)
        elif math.isnan(value):
            self._undefined[key] += 1
        value = float(value)
        if n == 0 or math.isnan(value):
            return
        self._totals[key] += value * n
        self._weights[key] += n
        if self.writer is not None:
            self.writer.add_scalar(key, value)

    def avg(self, key: str) -> float:
        """Weighted mean of one key; NaN while it has no value.

        Raises:
            KeyError: the key was neither given at construction nor updated.
        """
        if key not in self._weights:
            raise KeyError(f"no metric named {key!r}; known: {', '.join(self._weights) or 'none'}")
        weight = self._weights[key]
        return self._totals[key] / weight if weight else math.nan

    def result(self) -> dict[str, float]:
        """Weighted means of the keys that have a value; never NaN."""
        return {key: self.avg(key) for key, weight in self._weights.items() if weight}

    def keys(self) -> list[str]:
        """All keys known so far."""
        return list(self._totals)

    def undefined(self) -> dict[str, int]:
        """How many voices (or plain updates) had no value, of the keys where that happened."""
        return {key: count for key, count in self._undefined.items() if count}

    def all_reduce(self) -> None:
        """Combine the sums of all ranks, in place; once, after the last update. Nothing without
        torch.distributed.

        Ranks may have seen different keys (a rank without data, or without truth).
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, self.keys())
        keys = list(dict.fromkeys(key for keys in gathered for key in keys))
        on_gpu = dist.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"
        sums = torch.tensor(
            [
                [self._totals.get(key, 0.0), self._weights.get(key, 0.0), self._undefined.get(key, 0)]
                for key in keys
            ],
            dtype=torch.float64,
            device=device,
        )
        dist.all_reduce(sums)
        for key, (total, weight, undefined) in zip(keys, sums.tolist()):
            self._totals[key], self._weights[key], self._undefined[key] = total, weight, int(undefined)
