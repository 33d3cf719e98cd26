"""What all datasets share: an index of dicts, limits, transforms, and randomness that can be repeated."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.audio_io import read_audio
from pipeline.draw import drawn_from


class BaseDataset(Dataset, ABC):
    """Items from an index of dicts, passed through transforms.

    Every item is computed under its own random state, which follows from ``(seed, epoch, number of the item)``
    alone. Transforms that draw from torch's global generator therefore give the same item whatever the number of
    workers, and whichever items came before; the global generator is left as it was found.

    Args:
        index: one dict per entry; the list is copied, not changed.
        limit: keep that many entries at most.
        shuffle_index: shuffle the entries (reproducibly, by ``seed``) before the limit is applied.
        item_transforms: callables on the whole item, dict -> dict, applied first and in order. For what concerns
            several keys at once: noise, gain, dropped video.
        instance_transforms: callables per key of the item, applied after them.
        seed: the seed of the run.

    Raises:
        ValueError: ``limit`` is not positive.
    """

    def __init__(
        self,
        index: Sequence[dict[str, Any]],
        limit: int | None = None,
        shuffle_index: bool = False,
        item_transforms: Sequence[Callable[[dict], dict]] | None = None,
        instance_transforms: Mapping[str, Callable] | None = None,
        seed: int = 0,
    ) -> None:
        self._index = self._shuffle_and_limit_index(list(index), limit, shuffle_index, seed)
        self._item_transforms = list(item_transforms or [])
        self._instance_transforms = dict(instance_transforms or {})
        self._seed = seed
        # Shared memory, so that workers which live on from epoch to epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def index(self) -> list[dict[str, Any]]:
        """The entries, after shuffling and limiting."""
        return self._index

    @property
    def epoch(self) -> int:
        """The epoch that items are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that items are drawn for; workers that run already follow."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, ind: int) -> dict[str, Any]:
        """Return item ``ind``, loaded and transformed.

        Raises:
            IndexError: there is no such item.
        """
        if not 0 <= ind < len(self):
            raise IndexError(f"item {ind} of a dataset of {len(self)}")
        with drawn_from(_state(self._seed, self.epoch, ind)):
            return self.preprocess_data(self.load_instance(ind))

    @abstractmethod
    def load_instance(self, ind: int) -> dict[str, Any]:
        """Load item ``ind`` as a dict, before transforms."""

    def load_object(self, path: str | Path) -> torch.Tensor:
        """Read an audio file: (T,) float32, mono at 16 kHz."""
        return read_audio(path)

    def preprocess_data(self, instance_data: dict[str, Any]) -> dict[str, Any]:
        """Apply the transforms to a loaded item.

        Raises:
            ValueError: a transform is configured for a key that the item lacks.
        """
        for transform in self._item_transforms:
            instance_data = transform(instance_data)
        for key, transform in self._instance_transforms.items():
            if key not in instance_data:
                raise ValueError(
                    f"instance_transforms.{key}: items have no such key; they have {', '.join(instance_data)}"
                )
            instance_data[key] = transform(instance_data[key])
        return instance_data

    @staticmethod
    def _shuffle_and_limit_index(
        index: list[dict[str, Any]], limit: int | None, shuffle_index: bool, seed: int
    ) -> list[dict[str, Any]]:
        if limit is not None and limit <= 0:
            raise ValueError(f"limit={limit}: must be positive, or null for all entries")
        if shuffle_index:
            random.Random(seed).shuffle(index)
        return index[:limit]


def _state(seed: int, epoch: int, ind: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, ind]).generate_state(1, np.uint64)[0])
