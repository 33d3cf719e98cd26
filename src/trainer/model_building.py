"""The model that a training begins with."""

from logging import Logger
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from pipeline.cache import FeatureCache, describe_difference
from src.trainer.checkpoint import checkpoint_file, load_checkpoint, start_from
from src.trainer.separator import SHIPPED
from src.trainer.synchrony import fit_lips
from src.utils.io_utils import absolute

MAP_OF_LIPS = "lips.synchrony"


def build_model(config: DictConfig, fits_lips: bool, logger: Logger) -> nn.Module:
    """Instantiate the model; unless a run is resumed, give it the weights and the map of lips to begin with.

    Args:
        config: the whole configuration; `trainer.init_from` names weights to begin with.
        fits_lips: whether this process fits the fixed directions of the lips, from `datasets.root` and `cache`. Of
            several processes one does: the others receive them with the weights.
        logger: text log.

    Raises:
        ValueError: weights or voices do not serve.
    """
    model = instantiate(config.model)
    if not config.trainer.resume_from:
        if config.trainer.init_from:
            named = config.trainer.init_from
            path = SHIPPED if named == "shipped" else absolute(named)
            new = start_from(model, path)
            logger.info(f"Begins with {named}; new are {', '.join(new) or 'no weights'}")
            # Weights that were trained on a map of the same lips go with that map and no other.
            fits_lips = fits_lips and (MAP_OF_LIPS in new or not _same_lips(path, config.cache))
            if fits_lips and MAP_OF_LIPS not in new:
                logger.warning(
                    f"{named} was trained on other lips than those of {config.cache}: what reads them has to be learnt "
                    "anew, unless `python -m src.trainer.other_lips` carries it over"
                )
        if fits_lips:
            speakers = config.datasets.get("train", {}).get("speakers")
            fit_lips(model, config.datasets.root, config.cache, speakers)
    logger.info(f"{type(model).__name__}: {sum(p.numel() for p in model.parameters()):,} parameters")
    return model


def _same_lips(checkpoint: Path, cache: str) -> bool:
    """Whether a checkpoint was trained on embeddings of the front-end that a cache was made with."""
    trained_on = load_checkpoint(checkpoint_file(checkpoint)).get("front_end")
    return trained_on is not None and not describe_difference(trained_on, FeatureCache(cache).identity)
