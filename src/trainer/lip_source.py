"""Lip embeddings of recordings as the checkpoint's front-end makes them: out of a cache, or computed at once."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache import IDENTITY_KEYS, FeatureCache
from pipeline.frontend import FrontEnd
from pipeline.interpolation import late
from pipeline.lipreading.weights import file_digest
from pipeline.mouths import PREPROCESSING_VERSION, MouthError
from src.datasets.lips import ComputedLips
from src.utils.io_utils import absolute

logger = logging.getLogger(__name__)

USES = ("given", "swapped", "none", "first", "second")


class LipsError(ValueError):
    """Lip embeddings that the checkpoint needs cannot be had; the message names both sides and the remedy."""


@dataclass
class Lips:
    """Lips of one recording.

    Attributes:
        embeddings: per voice (F, D) float16, None without lips.
        damaged: reasons why mouth files that are there could not be used.
    """

    embeddings: list[np.ndarray | None]
    damaged: list[str] = field(default_factory=list)


class LipSource:
    """Embeddings by id and mouth file.

    The directory decides whose lips there are; where it holds no mouth file at all, the cache does.

    Args:
        dim: D.
        cache: embeddings made before, or None.
        stale: ids whose mouth files have changed since they were cached: the cache lacks them.
        front_end: computes what the cache lacks, or None.
        cache_decides: whether a voice without a mouth file has lips when the cache knows its id.
        use: "given"; "swapped", each voice gets the other one's lips, which shows whether lips decide whose voice
            comes out where; "first" or "second", the other voice's lips are not used.
        shift_frames: lips come so many frames late, or early where negative; edge frames are held.
    """

    def __init__(
        self,
        *,
        dim: int,
        cache: FeatureCache | None,
        stale: Collection[str] = (),
        front_end: FrontEnd | None,
        cache_decides: bool,
        use: str = "given",
        shift_frames: int = 0,
    ) -> None:
        self.dim, self._use, self._shift_frames = dim, use, shift_frames
        self._cache, self._cache_decides, self._stale = cache, cache_decides, frozenset(stale)
        self._computed = None if front_end is None else ComputedLips(front_end)

    def load(self, record: Mapping[str, Any]) -> Lips:
        """Lips of both voices of a recording of a dataset's index.

        Raises:
            LipsError: a mouth file is not in the cache and nothing can compute it.
        """
        lips = Lips([])
        for voice in (1, 2):
            try:
                lips.embeddings.append(self._load(record[f"id{voice}"], record[f"mouth{voice}"]))
            except MouthError as error:
                lips.embeddings.append(None)
                lips.damaged.append(str(error))
        if self._use == "swapped":
            lips.embeddings.reverse()
        elif self._use in ("first", "second"):
            lips.embeddings[1 if self._use == "first" else 0] = None
        if self._shift_frames:
            lips.embeddings = [
                None if embedding is None else late(torch.from_numpy(embedding), self._shift_frames).numpy()
                for embedding in lips.embeddings
            ]
        return lips

    def _load(self, speaker_id: str, mouth: str | None) -> np.ndarray | None:
        known = self._cache is not None and speaker_id in self._cache and speaker_id not in self._stale
        if known and (mouth is not None or self._cache_decides):
            return self._cache[speaker_id]
        if mouth is None:
            return None
        if self._computed is None:
            raise LipsError(
                f"{mouth} is not in the cache {self._cache.path}, or has changed since, and the front-end's weights "
                f"are not at hand: add it with precompute_visual.py --out {self._cache.path}, or pass weights=FILE"
            )
        return self._computed.load(speaker_id, mouth)


def open_lips(
    trained_on: Mapping[str, Any] | None,
    records: Iterable[Mapping[str, Any]],
    *,
    cache: str | Path | None = None,
    weights: str | Path | None = None,
    folders: Sequence[Path] = (),
    device: str = "auto",
    use: str = "given",
    shift_frames: int = 0,
) -> LipSource | None:
    """Find a source of lips for some recordings that fits what the separator was trained on.

    Args:
        trained_on: `front_end` of the checkpoint, None of a separator that takes no lips.
        records: entries of datasets' indexes.
        cache: file of embeddings.
        weights: file of the front-end, None for the one that the checkpoint names.
        folders: where else a file of that name may lie.
        device: where to compute what is not cached.
        use: "given"; "swapped", each voice gets the other one's lips; "first" or "second", of that voice alone; or
            "none".
        shift_frames: as of `LipSource`.

    Returns:
        The source; None for a separator that takes no lips, or when none are to be used.

    Raises:
        ValueError: an unknown `use`.
        LipsError: cache or weights are others than those trained on, or the weights are needed and absent.
        CacheError: the cache cannot be read.
    """
    if use not in USES:
        raise ValueError(f"inferencer.lips={use}: take one of {', '.join(USES)}")
    if use == "none":
        return None
    if trained_on is None:
        if cache is not None or weights is not None:
            logger.warning("The separator takes no lips: cache and weights are not used")
        return None
    features = None if cache is None else FeatureCache(absolute(cache))
    if features is not None:
        _compare(
            trained_on, features.identity, f"the cache {cache}", "pass the cache made with the same weights"
        )
    wanted = [(record[f"id{voice}"], record[f"mouth{voice}"]) for record in records for voice in (1, 2)]
    has_mouths = any(mouth is not None for _, mouth in wanted)
    stale = (
        [] if features is None else features.changed({n: mouth for n, mouth in wanted if mouth is not None})
    )
    if stale:
        logger.warning(
            "%d mouth files have changed since the cache %s was made, %s for one: their lips are computed anew",
            len(stale), cache, stale[0],
        )  # fmt: skip
    cached = set() if features is None else set(features) - set(stale)
    uncached = any(mouth is not None and name not in cached for name, mouth in wanted)
    path = _find_weights(trained_on, weights, folders, required=features is None) if uncached else None
    front_end = None
    if path is not None:
        settings = {key: trained_on[key] for key in ("network", "features")}
        # Half precision as in training only where the hardware has it: emulated it is many times slower.
        dtype = "float32" if trained_on.get("dtype") == "float32" else "auto"
        front_end = FrontEnd(weights=path, device=device, dtype=dtype, **settings)
    return LipSource(
        dim=int(trained_on["dim"]),
        cache=features,
        stale=stale,
        front_end=front_end,
        cache_decides=not has_mouths,
        use=use,
        shift_frames=shift_frames,
    )


def weights_candidates(
    trained_on: Mapping[str, Any], weights: str | Path | None, folders: Sequence[Path]
) -> list[Path]:
    """Files that the front-end's weights may be: the one that is named, else those named as in training."""
    if weights is not None:
        return [absolute(weights)]
    named = Path(trained_on["weights"])
    return [absolute(named), *(folder / named.name for folder in folders)]


def _find_weights(
    trained_on: Mapping[str, Any], weights: str | Path | None, folders: Sequence[Path], *, required: bool
) -> Path | None:
    """File of the very front-end trained on; None where there is none and none is required.

    Raises:
        LipsError: there is another one in its place, or none although it is required or named by the user.
    """
    candidates = weights_candidates(trained_on, weights, folders)
    differing = None
    for path in candidates:
        if path.is_file():
            found = {
                **trained_on,
                "weights_sha256": file_digest(path),
                "preprocessing_version": PREPROCESSING_VERSION,
            }
            try:
                _compare(trained_on, found, f"the weights {path}", "pass weights=FILE with those trained on")
            except LipsError as error:
                differing = error
            else:
                return path
    if weights is None and not required:
        return None
    raise differing or LipsError(
        f"the front-end's weights are not there (looked for {', '.join(map(str, dict.fromkeys(candidates)))}): pass "
        f"weights=FILE with {trained_on['network']}, sha256 {trained_on['weights_sha256']}, or cache=FILE with "
        "embeddings made from them"
    )


def _compare(trained_on: Mapping[str, Any], found: Mapping[str, Any], what: str, remedy: str) -> None:
    """Embeddings of another front-end mean something else: refuse them."""
    differing = [key for key in IDENTITY_KEYS if trained_on[key] != found[key]]
    if differing:
        sides = "; ".join(
            f"{key} {trained_on[key]} in training, {found[key]} in this file" for key in differing
        )
        raise LipsError(f"{what} does not fit the checkpoint ({sides}): {remedy}")
