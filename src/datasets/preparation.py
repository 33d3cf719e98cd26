"""Data a run starts from: the user's directory and cache, or the embedded corpus made on the spot."""

import glob
import logging
from pathlib import Path

import torch.distributed as dist
from omegaconf import DictConfig

from pipeline.cache import FeatureCache
from pipeline.default_weights import CACHES
from pipeline.embedded import embedded_paths, prepare_embedded_corpus
from src.utils.init_utils import Rank

logger = logging.getLogger(__name__)


def find_cache(root: str | Path) -> Path:
    """The cache that `precompute_visual.py --root ROOT` made without `--out`.

    Raises:
        ValueError: there is none, or more than one.
    """
    name = Path(root).resolve().name
    found = sorted(path for path in CACHES.glob(f"{glob.escape(name)}.*.h5") if ".shard-" not in path.name)
    if not found:
        raise ValueError(
            f"a lip-cued model needs cache=FILE: make one with `python precompute_visual.py --root {root}`, or train "
            "without lips with model=audio_only"
        )
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} caches belong to {root}: choose one with cache=FILE: {', '.join(map(str, found))}"
        )
    return found[0]


def prepare_data(config: DictConfig, rank: Rank) -> dict | None:
    """Fill in `datasets.root`, `cache` and `visual_dim` where the user left them open.

    Without `datasets.root` the embedded synthetic corpus is made (once) under `<trainer.save_dir>/embedded`.

    Returns:
        Identity of the cached lip embeddings, None for a separator without lips.

    Raises:
        ValueError: a lip-cued model without a cache.
    """
    if config.datasets.root is None:
        folder = Path(config.trainer.save_dir) / "embedded"
        if rank.is_main:
            prepare_embedded_corpus(folder)
        if rank.world_size > 1:
            dist.barrier()  # the others wait for it
        root, cache = embedded_paths(folder)
        config.datasets.root, config.cache = str(root), config.cache or str(cache)
    if config.model.get("visual_dim", 0) == 0:
        config.cache = None
        return None
    if config.cache is None:
        config.cache = str(find_cache(config.datasets.root))
        logger.info("Lip embeddings out of %s", config.cache)
    identity = FeatureCache(config.cache).identity
    if config.visual_dim is None:
        config.visual_dim = identity["dim"]
    return identity
