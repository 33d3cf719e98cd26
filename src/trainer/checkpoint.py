"""Checkpoints: plain tensors and values, written atomically, readable with `weights_only=True`.

Those that ship are safetensors in half precision, with what a checkpoint says about itself as JSON in the header.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from pipeline.lipreading.weights import half_precision
from src.utils.io_utils import write_atomically

FORMAT = 1
LAST, BEST = "last.pt", "best.pt"
SHIPPED_SUFFIX = ".safetensors"
_ABOUT = "checkpoint"  # the header's entry
_BEGIN_OTHERWISE = "start from a run of the same model, or with trainer.init_from=null from nothing"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint: killed at any instant, the last whole one stays.

    Args:
        path: file to write.
        content: `arch`, `epoch`, `step`, `state_dict`, `ema`, `optimizer`, `lr_scheduler`, `monitor_best`,
            `config` (plain dict), `front_end` (identity of the lip embeddings, or None), `rng` (random
            states `cpu` and `cuda`).
    """
    write_atomically(path, lambda stream: torch.save({"format": FORMAT, **content}, stream))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is absent, damaged, or no checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist: train one first, or name another file")
    try:
        if path.suffix == SHIPPED_SUFFIX:
            content = _load_shipped(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, OSError, ValueError, SafetensorError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"checkpoint {path} cannot be read ({error}): is it whole?") from error
    if not isinstance(content, dict) or "state_dict" not in content or "config" not in content:
        raise CheckpointError(f"{path} is no checkpoint of this project: it lacks 'state_dict' or 'config'")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {content.get('format')}, this version reads {FORMAT}: train anew or "
            "use the version that wrote it"
        )
    return content


def ship_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write the weights meant for use, in half precision, with everything needed to load them again.

    What belongs to the machine or to going on with training is left out.

    Args:
        path: file to write, `*.safetensors`.
        content: as of `load_checkpoint`.
    """
    weights = content.get("ema") or content["state_dict"]
    about = {key: content.get(key) for key in ("arch", "epoch", "step", "front_end", "monitor_best")}
    about["format"], about["config"] = content.get("format", FORMAT), _portable(content["config"])
    data = save(half_precision(weights), metadata={_ABOUT: json.dumps(about)})
    write_atomically(path, lambda stream: stream.write(data))


def _load_shipped(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt", device="cpu") as file:
        about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return {**about, "state_dict": weights}


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the places of one machine."""
    datasets = {
        part: {key: None if key in ("root", "cache", "speakers") else value for key, value in options.items()}
        if isinstance(options, Mapping)
        else options
        for part, options in config.get("datasets", {}).items()
    }
    trainer = {**config.get("trainer", {}), "save_dir": "saved", "resume_from": None, "init_from": None}
    return _names_of_places(
        {**config, "datasets": {**datasets, "root": None}, "cache": None, "trainer": trainer}
    )


def _names_of_places(value: Any) -> Any:
    """Plain values in which an absolute path is its last part."""
    if isinstance(value, Mapping):
        return {key: _names_of_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_names_of_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def find_checkpoint(run_dir: str | Path) -> Path:
    """The checkpoint to use of a run: the best where validation chose one, else the last.

    Raises:
        CheckpointError: the run has none.
    """
    for name in (BEST, LAST):
        if (Path(run_dir) / name).is_file():
            return Path(run_dir) / name
    raise CheckpointError(
        f"no {BEST} or {LAST} in {os.fspath(run_dir)}: train first, or pass checkpoint=FILE"
    )


def checkpoint_file(path: str | Path) -> Path:
    """A file as it is; of a run's folder, the checkpoint to use.

    Raises:
        CheckpointError: the folder has none.
    """
    return find_checkpoint(path) if Path(path).is_dir() else Path(path)


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Put the weights meant for use (the moving average where there is one) into a model.

    Raises:
        CheckpointError: names or shapes do not fit the model.
    """
    weights = checkpoint.get("ema") or checkpoint["state_dict"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} does not fit {type(model).__name__}: {error}") from error


def added(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Modules that can begin as identity and that weights of these names hold nothing of, by their own names."""
    names = list(names)
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "begin_as_identity") and not any(known.startswith(f"{name}.") for known in names)
    }


def start_from(model: nn.Module, path: str | Path) -> list[str]:
    """Take over from a checkpoint, or from the best one of a run, every weight of the same name and shape.

    The model may have more than the checkpoint, but most of the checkpoint must find its place in it. Blocks that the
    checkpoint knows nothing of begin as identity where they can, so that a deeper model begins as the one it grew from
    (Chen et al., "Net2Net", 2016); and the band split takes over from one of another STFT window.

    Returns:
        Names of the model's weights that the checkpoint does not have.

    Raises:
        CheckpointError: there is no checkpoint, most of it does not fit, or a module cannot begin with what is there.
    """
    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path)
    weights = checkpoint.get("ema") or checkpoint["state_dict"]
    own = model.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and w.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)
    begun = set()
    for module in added(model, weights).values():
        module.begin_as_identity()
    for name, module in model.named_modules():
        known = {k.removeprefix(f"{name}."): w for k, w in weights.items() if k.startswith(f"{name}.")}
        unlike = {key for key in module.state_dict() if f"{name}.{key}" not in fitting}
        if hasattr(module, "begin_from") and known and unlike:
            try:
                module.begin_from(known)
            except ValueError as error:
                raise CheckpointError(f"checkpoint {path}: {name}: {error}; {_BEGIN_OTHERWISE}") from error
            begun |= {f"{name}.{key}" for key in unlike if key in known}
    taken = sum(w.numel() for name, w in weights.items() if name in fitting or name in begun)
    share = taken / max(1, sum(w.numel() for w in weights.values()))
    if share < 0.5:
        raise CheckpointError(
            f"checkpoint {path}: {share:.0%} of its weights fit this {type(model).__name__}; {_BEGIN_OTHERWISE}"
        )
    return [name for name in own if name not in fitting and name not in begun]
