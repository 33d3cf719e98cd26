"""The embedded corpus ready for training: synthetic talking mouths, and a cache of their embeddings."""

from pathlib import Path

from pipeline.default_weights import PREFERRED, default_weights
from pipeline.extract import precompute
from pipeline.synthetic import write_corpus


def embedded_paths(folder: str | Path) -> tuple[Path, Path]:
    """Data directory and cache file of the corpus in a folder."""
    return Path(folder) / "corpus", Path(folder) / "mouths.h5"


def prepare_embedded_corpus(folder: str | Path) -> tuple[Path, Path]:
    """Make what is absent of the embedded corpus and its cache; quick when all is there.

    The front-end is the one at hand: a published lip reader that was fetched, else the encoder that ships here.

    Returns:
        (data directory in the course's layout, cache file).

    Raises:
        ValueError: the folder holds something else, or there are no lip weights.
    """
    # Not above: a reader of caches need not wait for the networks.
    from pipeline.frontend import default_features, front_end_for, named_network

    root, cache = embedded_paths(folder)
    write_corpus(root)
    weights = default_weights()
    if weights is None:
        raise ValueError("no lip weights at hand: weights/lips.safetensors is not in this clone, get it back")
    network = named_network(weights) or PREFERRED
    front_end = front_end_for(
        cache,
        network=network,
        weights=weights,
        features=default_features(network),
        device="auto",
        dtype="auto",
    )
    precompute(root, cache, front_end)
    return root, cache
