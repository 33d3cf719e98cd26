"""From a checkpoint to the separator in it, built by the checkpoint's own configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from torch import nn

from src.model import __all__ as model_names
from src.trainer.checkpoint import (
    BEST,
    LAST,
    CheckpointError,
    checkpoint_file,
    find_checkpoint,
    load_checkpoint,
    load_weights,
)
from src.utils.io_utils import ROOT_PATH, absolute

DEFAULT_RUN = "saved/separator"
SEPARATORS = {f"src.model.{name}" for name in model_names}
SHIPPED = ROOT_PATH / "weights" / "small.safetensors"


@dataclass(frozen=True)
class Separator:
    """A trained separator.

    Attributes:
        model: in eval mode, on the CPU.
        path: the checkpoint.
        front_end: identity of the lip embeddings that it was trained on; None when it takes none.
        folders: where the front-end's weights may lie: beside the checkpoint, beside the cache trained with, or
            in the project's `weights/`.
    """

    model: nn.Module
    path: Path
    front_end: dict[str, Any] | None
    folders: list[Path]


def choose_checkpoint(named: str | Path | None, run_dir: str | Path | None) -> Path:
    """The checkpoint or the run that is named, else the run of train.py if there is one, else the one that ships here.

    Raises:
        CheckpointError: there is none of them.
    """
    if named:
        return absolute(named)
    if run_dir:
        return find_checkpoint(absolute(run_dir))
    run = absolute(DEFAULT_RUN)
    if any((run / name).is_file() for name in (BEST, LAST)) or not SHIPPED.is_file():
        return find_checkpoint(run)
    return SHIPPED


def load_separator(path: str | Path) -> Separator:
    """Build and load a separator.

    Args:
        path: a checkpoint, or the folder of a run (its best checkpoint, else its last).

    Raises:
        CheckpointError: there is none, or this version cannot build its model.
    """
    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path)
    config = checkpoint["config"].get("model")
    # By name and one by one: through what a module imports, a longer path would lead anywhere.
    foreign = [target for target in _targets(config) if target not in SEPARATORS]
    if foreign or not isinstance(config, dict) or "_target_" not in config:
        # A checkpoint may come from anyone, and a _target_ can name any function.
        named = f"names {', '.join(map(str, foreign))}" if foreign else "names no model"
        raise CheckpointError(
            f"checkpoint {path}: its configuration {named}, and not a separator of src.model"
        )
    try:
        model = instantiate(config)
    except HydraException as error:
        raise CheckpointError(
            f"checkpoint {path}: its model cannot be built ({error.__cause__ or error}); use the version of the code "
            "that trained it"
        ) from error
    load_weights(model, checkpoint, path)
    takes_lips = bool(config.get("visual_dim", 0))
    front_end = checkpoint.get("front_end") if takes_lips else None
    folders = [path.parent, ROOT_PATH / "weights"]
    if checkpoint["config"].get("cache"):
        folders.insert(1, absolute(checkpoint["config"]["cache"]).parent)
    return Separator(model.eval(), path, front_end, folders)


def _targets(config: Any) -> Iterator[Any]:
    """Every `_target_` in a configuration, at any depth."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["_target_"]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _targets(value)
