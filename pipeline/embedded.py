"""The embedded corpus ready for training: synthetic talking mouths, and a cache of their embeddings.

The front-end is seeded, not trained: it stands in for a lip reader where none is at hand, and the cache says so.
"""

from pathlib import Path

from pipeline.extract import precompute
from pipeline.lipreading.seeded import write_seeded
from pipeline.synthetic import write_corpus

NETWORK = "lrw_snv05x_tcn1x"


def prepare_embedded_corpus(folder: str | Path) -> tuple[Path, Path]:
    """Make what is absent of the embedded corpus, its seeded front-end and its cache; quick when all is there.

    Returns:
        (data directory in the course's layout, cache file).

    Raises:
        ValueError: the folder holds something else.
    """
    # Not above: a reader of caches need not wait for the networks.
    from pipeline.frontend import front_end_for

    folder = Path(folder)
    root = write_corpus(folder / "corpus")
    weights = folder / "seeded_frontend.pt"
    if not weights.is_file():
        write_seeded(NETWORK, weights)
    cache = folder / "mouths.h5"
    front_end = front_end_for(
        cache, network=NETWORK, weights=weights, features="frontend", device="auto", dtype="auto"
    )
    precompute(root, cache, front_end)
    return root, cache
