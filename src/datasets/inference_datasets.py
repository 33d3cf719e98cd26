"""The datasets whose recordings `inference.py` separates."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from src.datasets.lips import cache_stands_in
from src.utils.io_utils import absolute


def inference_datasets(config: DictConfig) -> dict[str, Any]:
    """Instantiate the parts of `datasets` that `inferencer.parts` names, by default all but the one for training.

    Lips are the inferencer's business, so that no part gets the cache, but where it stands in for mouth files: there
    its ids part the names of mixtures.

    Args:
        config: uses `datasets`, `inferencer.parts`, `part`, `root` and `cache`.

    Returns:
        {part: dataset}.

    Raises:
        ValueError: a part that does not exist; or what the datasets raise.
    """
    known = {part: c for part, c in config.datasets.items() if OmegaConf.is_dict(c) and "_target_" in c}
    parts = config.inferencer.parts or [part for part in known if part != "train"]
    parts = [parts] if isinstance(parts, str) else parts
    if unknown := set(parts) - set(known):
        raise ValueError(
            f"inferencer.parts: no {', '.join(unknown)} in datasets; there are {', '.join(known)}"
        )
    if config.part is not None and not any(known[part].get("part") == config.part for part in parts):
        raise ValueError(
            f"part={config.part}: the chosen datasets have {', '.join(parts)}; leave out datasets=, which takes any "
            "part, or choose with inferencer.parts"
        )
    stands_in = config.cache is not None and cache_stands_in(config.root)
    lenient = {"cache": str(absolute(config.cache)) if stands_in else None, "strict": False}
    own = {part: {key: lenient[key] for key in lenient if key in known[part]} for part in parts}
    return {part: instantiate(known[part], **own[part]) for part in parts}
