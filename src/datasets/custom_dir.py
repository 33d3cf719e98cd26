"""Any directory of mixtures to separate, with or without truths and mouths."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from src.datasets.base_dataset import BaseDataset
from src.datasets.lips import CachedLips, ComputedLips, FrontEnd
from src.datasets.mixture import load_mixture, mixture_index


class CustomDirDataset(BaseDataset):
    """The mixtures of ``path/audio/mix``; ``audio/s1``, ``audio/s2`` and ``mouths/`` may be absent, whole or in part.

    What an item holds is told in ``src.datasets.mixture``. Nothing is written into the directory. An item whose files
    cannot be read raises when it is loaded, so that a loop over items can go on with the next.

    Args:
        path: the data directory.
        part: None for ``path/audio/mix``, or the folder of ``path/audio`` that holds ``mix``, such as ``test``.
        cache: file of lip embeddings.
        front_end: the lip-reading network, to compute embeddings when items are loaded. Give one of the two, or
            neither for audio-only use.
        missing_lips: a mouth file that the cache lacks is an ``"error"``, or ``"mask"``: that speaker counts as one
            without lips, with a warning.
        limit, shuffle_index, item_transforms, instance_transforms, seed: see ``BaseDataset``.

    Attributes:
        problems: (file, reason) of files that cannot be used and were left out.

    Raises:
        ValueError: the directory is not laid out as expected or holds no mixtures; both ``cache`` and ``front_end``
            are given.
    """

    def __init__(
        self,
        path: str | Path,
        part: str | None = None,
        cache: str | Path | None = None,
        front_end: FrontEnd | None = None,
        missing_lips: Literal["error", "mask"] = "mask",
        limit: int | None = None,
        shuffle_index: bool = False,
        item_transforms: Sequence[Callable[[dict], dict]] | None = None,
        instance_transforms: Mapping[str, Callable] | None = None,
        seed: int = 0,
    ) -> None:
        if cache is not None and front_end is not None:
            raise ValueError(
                f"cache={cache} and a front-end are both given: embeddings come from one of the two"
            )
        cached = None if cache is None else CachedLips(cache, path, missing_lips)
        index, self.problems = mixture_index(path, part, cached)
        if not index and not self.problems:
            folder = "audio/mix" if part is None else f"audio/{part}/mix"
            raise ValueError(f"{path}: no mixtures (wav, flac or mp3) in its folder {folder}")
        super().__init__(index, limit, shuffle_index, item_transforms, instance_transforms, seed)
        if cached is not None:
            cached.check((record[f"id{s}"], record[f"mouth{s}"]) for record in self.index for s in (1, 2))
        self._lips = cached if front_end is None else ComputedLips(front_end)

    def load_instance(self, ind: int) -> dict[str, Any]:
        """Load mixture ``ind``.

        Raises:
            AudioError, MouthError: a file of it cannot be used.
        """
        return load_mixture(self.index[ind], self._lips, self.load_object)
