"""Which lip weights to take where none are named: published ones that were fetched, else those that ship here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHES = ROOT / "saved" / "cache"  # where `precompute_visual.py` puts a cache that is given no name
FETCHED = ROOT / "saved" / "weights"  # where `python -m pipeline.download` puts them
SHIPPED = ROOT / "weights" / "lips.safetensors"
PREFERRED = "lrw_resnet18_dctcn"  # of the published ones, the one that the task names


def default_weights(network: str | None = None) -> Path | None:
    """Weights file of a network, or of the best one at hand.

    Args:
        network: name; None takes the preferred published one where it was fetched, else the one that ships here.

    Returns:
        The file; None where there is none.
    """
    fetched = sorted(FETCHED.glob(f"{network or PREFERRED}.*")) if FETCHED.is_dir() else []
    whole = [path for path in fetched if path.suffix in (".pth", ".pt", ".tar", ".safetensors")]
    if whole:
        return whole[0]
    return SHIPPED if network in (None, "sync_light") and SHIPPED.is_file() else None
