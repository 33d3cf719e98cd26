"""The model that a training begins with."""

from logging import Logger

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from src.trainer.checkpoint import start_from
from src.trainer.separator import SHIPPED
from src.trainer.synchrony import fit_lips
from src.utils.io_utils import absolute


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
            new = start_from(model, SHIPPED if named == "shipped" else absolute(named))
            logger.info(f"Begins with {config.trainer.init_from}; new are {', '.join(new) or 'no weights'}")
        if fits_lips:
            fit_lips(model, config.datasets.root, config.cache)
    logger.info(f"{type(model).__name__}: {sum(p.numel() for p in model.parameters()):,} parameters")
    return model
