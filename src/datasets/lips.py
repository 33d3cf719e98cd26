"""Where the embeddings of a speaker's lips come from: the cache, or the lip-reading network at once.

Axes: F video frames at 25 fps, D values in an embedding.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pipeline.audio_io import SAMPLE_RATE_HZ
from pipeline.cache import FeatureCache
from pipeline.layout import find_mouths
from pipeline.mouths import FRAME_RATE_HZ

logger = logging.getLogger(__name__)

FRAME_SAMPLES = SAMPLE_RATE_HZ // FRAME_RATE_HZ  # audio samples in one video frame, 640
_NAMED = 5  # how many files a message lists
_KEPT_BYTES = 256 * 2**20


class Lips(Protocol):
    """A source of lip embeddings."""

    dim: int

    def has(self, speaker_id: str, mouth: str | None) -> bool:
        """Whether there are lips of that id, whose mouth file is ``mouth`` (``None``: no file)."""

    def load(self, speaker_id: str, mouth: str | None) -> np.ndarray:
        """Embeddings (F, D) float16 of an id that ``has`` affirmed."""


class FrontEnd(Protocol):
    """What computes embeddings from a mouth file: ``pipeline.frontend.FrontEnd``."""

    identity: dict

    def embed_file(self, path: str | Path) -> np.ndarray:
        """Embeddings (F, D) float16 of a mouth file."""


def cache_stands_in(root: str | Path) -> bool:
    """Whether a cache decides whose lips there are, since a data directory has no folder of mouths."""
    return find_mouths(root) is None


class CachedLips:
    """Lips out of a cache file.

    The directory decides whose lips there are: an id without a mouth file has none, even if the cache knows it.
    Where it has no folder of mouths either, as on a machine that got the cache in their place, the cache decides.

    Args:
        cache: the cache file.
        root: the data directory.
        missing: what to do about a mouth file that the cache lacks: ``"error"``, or ``"mask"``: treat that speaker
            as one without lips, with a warning.

    Raises:
        CacheError: the cache is absent or is none.
        ValueError: another word for ``missing``.
    """

    def __init__(
        self, cache: str | Path, root: str | Path, missing: Literal["error", "mask"] = "error"
    ) -> None:
        if missing not in ("error", "mask"):
            raise ValueError(f"missing_lips={missing!r}: must be 'error' or 'mask'")
        self._root, self._missing = root, missing
        self._cache = FeatureCache(cache)
        self._ids = frozenset(self._cache.ids())
        self._cache_decides = cache_stands_in(root)
        self.dim = self._cache.dim

    def check(self, wanted: Iterable[tuple[str, str | None]]) -> None:
        """Find mouth files that are not in the cache, or have changed since they were embedded.

        Args:
            wanted: (id, mouth file or None) of every speaker.

        Raises:
            ValueError: there are some, and ``missing`` is ``"error"``.
        """
        mouths = {name: mouth for name, mouth in wanted if mouth is not None}
        self._ids -= set(self._cache.changed(mouths))
        absent = sorted(mouth for name, mouth in mouths.items() if name not in self._ids)
        if not absent:
            return
        message = (
            f"{len(absent)} mouth files are not in the cache {self._cache.path}, or have changed since: "
            f"{', '.join(absent[:_NAMED])}{', ...' if len(absent) > _NAMED else ''}"
        )
        if self._missing == "error":
            raise ValueError(
                f"{message}. Add them with: python precompute_visual.py --root {self._root} --out {self._cache.path}"
                " (with the weights of this cache); or set datasets.missing_lips=mask to go without the lips of these"
                " speakers"
            )
        logger.warning("%s; these speakers are taken as having no lips", message)

    @property
    def standing_in(self) -> frozenset[str]:
        """Ids whose lips there are without their mouth files: all of the cache, where it decides."""
        return self._ids if self._cache_decides else frozenset()

    def has(self, speaker_id: str, mouth: str | None) -> bool:
        """Whether the id is in the cache, and has a mouth file where the directory has any."""
        return speaker_id in self._ids and (self._cache_decides or mouth is not None)

    def load(self, speaker_id: str, mouth: str | None) -> np.ndarray:
        """Embeddings (F, D) float16 out of the cache."""
        return self._cache[speaker_id]


class ComputedLips:
    """Lips computed when they are asked for; those of the last ids are kept, since ids recur from mix to mix.

    Args:
        front_end: the lip-reading network. It lives in one process: leave ``num_workers`` at 0.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._kept_bytes = 0
        self.dim = int(front_end.identity["dim"])

    def has(self, speaker_id: str, mouth: str | None) -> bool:
        """Whether there is a mouth file."""
        return mouth is not None

    def load(self, speaker_id: str, mouth: str | None) -> np.ndarray:
        """Embeddings (F, D) float16 of the mouth file.

        Raises:
            MouthError: the file cannot be used.
        """
        assert mouth is not None
        if mouth in self._kept:
            self._kept.move_to_end(mouth)
            return self._kept[mouth]
        lips = self._front_end.embed_file(mouth)
        self._kept[mouth] = lips
        self._kept_bytes += lips.nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return lips


def fit_frames(lips: np.ndarray, num_frames: int) -> np.ndarray:
    """Cut lips to ``num_frames``, or hold their last frame, as a video that has ended does.

    Shape:
        lips (F, D) -> (num_frames, D)
    """
    if len(lips) >= num_frames:
        return lips[:num_frames]
    return np.concatenate([lips, np.repeat(lips[-1:], num_frames - len(lips), axis=0)])
