"""One part of the course's data set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from src.datasets.base_dataset import BaseDataset
from src.datasets.lips import CachedLips
from src.datasets.mixture import load_mixture, mixture_index, require_complete


class AVSSDataset(BaseDataset):
    """The mixtures of ``root/audio/<part>`` as they lie there, with lips out of a cache.

    What an item holds is told in ``src.datasets.mixture``. Nothing is written into the directory.

    Args:
        root: the data directory, with ``audio/<part>/mix``, ``s1``, ``s2``.
        part: ``train``, ``val`` or ``test``.
        cache: file of lip embeddings; None for audio-only use.
        strict: refuse the directory when a file in it cannot be used or a truth is absent. False: such files are
            listed in ``problems`` and left out, and items tell in ``sources_mask`` which truths they have.
        missing_lips: a mouth file that the cache lacks is an ``"error"``, or ``"mask"``: that speaker counts as one
            without lips.
        limit, shuffle_index, item_transforms, instance_transforms, seed: see ``BaseDataset``.

    Attributes:
        problems: (file, reason) of what was left out.

    Raises:
        ValueError: see ``strict`` and ``missing_lips``; or the directory is not laid out as expected.
    """

    def __init__(
        self,
        root: str | Path,
        part: str,
        cache: str | Path | None = None,
        strict: bool = True,
        missing_lips: Literal["error", "mask"] = "error",
        limit: int | None = None,
        shuffle_index: bool = False,
        item_transforms: Sequence[Callable[[dict], dict]] | None = None,
        instance_transforms: Mapping[str, Callable] | None = None,
        seed: int = 0,
    ) -> None:
        self._lips = None if cache is None else CachedLips(cache, root, missing_lips)
        index, self.problems = mixture_index(root, part, self._lips)
        if strict:
            require_complete(Path(root) / "audio" / part, index, self.problems)
        super().__init__(index, limit, shuffle_index, item_transforms, instance_transforms, seed)
        if self._lips is not None:
            self._lips.check((record[f"id{s}"], record[f"mouth{s}"]) for record in self.index for s in (1, 2))

    def load_instance(self, ind: int) -> dict[str, Any]:
        """Load mixture ``ind``."""
        return load_mixture(self.index[ind], self._lips, self.load_object)
