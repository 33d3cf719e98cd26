"""The models of a cost profile: named configurations and checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from pipeline.lipreading import build
from src.trainer.checkpoint import load_checkpoint
from src.trainer.separator import load_separator
from src.utils.io_utils import ROOT_PATH, absolute

Names = str | Sequence[str]


@dataclass(frozen=True)
class Subject:
    """A model to profile.

    Attributes:
        name: as the user wrote it: a name of `src/configs/model`, or the path of a checkpoint.
        model, loss, optimizer: resolved configurations.
        network: lip-reading network, None when the model takes no lips.
        features: what of the lip reader is embedded, see `pipeline.frontend.FrontEnd`.
        lip_dim: dimensions of the embedding, 0 without lips.
    """

    name: str
    model: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    network: str | None
    features: str
    lip_dim: int


def find_subjects(*, models: Names, checkpoints: Names, lip_reader: str, overrides: Names) -> list[Subject]:
    """Compose named configurations and open checkpoints.

    Loss and optimizer are those of `train.yaml` for all. Must run while Hydra is initialised on `src/configs`.

    Args:
        models: names in `src/configs/model` (here and below a single string is a list of one).
        checkpoints: files, or folders of runs; each brings its model and names its lip reader.
        lip_reader: network for all models, and for checkpoints that name none.
        overrides: options of `train.py`, for instance "model.channels=64".

    Raises:
        ValueError: nothing is named, something twice, or a name is unknown.
        CheckpointError: a checkpoint cannot be used.
    """
    models, checkpoints, overrides = map(_as_list, (models, checkpoints, overrides))
    named = [*models, *checkpoints]
    if not named:
        raise ValueError("nothing to profile: name models=[...] or checkpoints=[...]")
    if twice := {name for name in named if named.count(name) > 1}:
        raise ValueError(f"named more than once: {', '.join(sorted(twice))}")
    known = sorted(path.stem for path in (ROOT_PATH / "src/configs/model").glob("*.yaml"))
    if unknown := [name for name in models if name not in known]:
        raise ValueError(f"models: {', '.join(unknown)} unknown; known are: {', '.join(known)}")
    dim = build(lip_reader).embedding_dim
    subjects = []
    for name in models:
        config = _compose([f"model={name}", f"visual_dim={dim}", *overrides])
        lips = (lip_reader, "frontend", dim) if _takes_lips(config["model"]) else (None, "frontend", 0)
        subjects.append(Subject(name, config["model"], config["loss"], config["optimizer"], *lips))
    return subjects + [_open_checkpoint(name, lip_reader, overrides) for name in checkpoints]


def _open_checkpoint(name: str, lip_reader: str, overrides: Sequence[str]) -> Subject:
    separator = load_separator(absolute(name))  # refuses what is no model of this project
    model = load_checkpoint(separator.path)["config"]["model"]
    config = _compose([override for override in overrides if not override.startswith("model.")])
    lips: tuple[str | None, str, int] = (None, "frontend", 0)
    if separator.front_end is not None:
        lips = tuple(separator.front_end[key] for key in ("network", "features", "dim"))
    elif _takes_lips(model):
        lips = (lip_reader, "frontend", build(lip_reader).embedding_dim)
    return Subject(name, model, config["loss"], config["optimizer"], *lips)


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    config: DictConfig = hydra.compose("train", overrides=list(overrides))
    return {key: OmegaConf.to_container(config[key], resolve=True) for key in ("model", "loss", "optimizer")}


def _as_list(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _takes_lips(model: dict[str, Any]) -> bool:
    return bool(model.get("visual_dim", 0))
