"""Weights files of the lip-reading networks: reading, checking against a network, naming what is wrong."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.lipreading.network import LipReader
from pipeline.lipreading.registry import NETWORKS, build
from pipeline.lipreading.tcn import TemporalBlock

UNLABELLED = "unlabelled: taken as published"
_NESTED_KEYS = ("model_state_dict", "state_dict")
_SHOWN_DIFFERENCES = 5
# Training scripts keep scores beside the weights, often as NumPy scalars; they are plain numbers.
_HARMLESS_GLOBALS = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
]


class WeightsError(ValueError):
    """A weights file that cannot be read or does not fit the network asked for."""


def file_digest(path: str | Path) -> str:
    """SHA-256 of the file's bytes, in hex.

    Raises:
        WeightsError: the file does not exist or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"weights {path}: cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()


def weights_kind(path: str | Path) -> str:
    """What the file says its weights are (its ``kind`` entry), e.g. that they were never trained.

    Raises:
        WeightsError: the file cannot be read as weights.
    """
    return str(_read(Path(path))[1].get("kind", UNLABELLED))


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it ships: floating-point values in float16, all contiguous."""
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }


def network_of(path: str | Path) -> str | None:
    """The network that the file says its weights are of (its ``network`` entry); None if it says nothing.

    Raises:
        WeightsError: the file cannot be read as weights.
    """
    name = _read(Path(path))[1].get("network")
    return name if isinstance(name, str) else None


def load_network(name: str, path: str | Path) -> LipReader:
    """Builds the network and loads a weights file into it, with nothing missing and nothing left over.

    Accepts what ``torch.save`` wrote (any extension) or safetensors; a bare state dict or one under
    ``model_state_dict`` or ``state_dict``; keys with or without the ``module.`` prefix of data-parallel
    training. Never unpickles code.

    Returns:
        The network on the CPU, in eval mode and frozen (`LipReader.freeze`), float32.

    Raises:
        ValueError: no network is called `name`.
        WeightsError: the file is absent, broken, no checkpoint, or one of another network.
    """
    with torch.device("meta"):  # no time for initial values that are overwritten below
        reader = build(name)
    path = Path(path)
    entries, _ = _read(path)
    state = _without_prefix(_tensors(name, path, entries))
    _check_fit(reader, path, state)
    reader.to_empty(device="cpu")
    try:
        reader.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"weights {path} do not load as {name}: {error}") from error
    return reader.freeze()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (the entries that should be weights, the metadata beside them)."""
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights {path}: {what}; give the path of a downloaded checkpoint")
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle can fail in any way at all; whatever it was is kept as the cause.
    except Exception as error:
        raise WeightsError(f"weights {path}: {_why_unreadable(path, error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"weights {path}: holds a {type(content).__name__}, not a state dict; is this the right file?"
        )
    for key in _NESTED_KEYS:
        if isinstance(content.get(key), dict):
            return content[key], {k: v for k, v in content.items() if k != key}
    return content, {}


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"weights {path}: damaged or cut-off safetensors file ({error})") from error


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of a JSON header and that header's brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100 << 20


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if not size:
        return "is empty; download it again"
    if looks_like_web_page(head):
        return "is a web page, not a checkpoint; download the file itself, not the page that shows it"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"is cut off after {size:,} bytes (no end of archive); download it again"
    first_line = (str(error).strip().splitlines() or [""])[0][:200]
    return f"is no checkpoint that can be read safely ({type(error).__name__}: {first_line})"


def looks_like_web_page(head: bytes) -> bool:
    """Whether a file that begins with `head` is HTML."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script"))


def _tensors(name: str, path: Path, entries: dict[str, Any]) -> dict[str, Tensor]:
    for key, value in entries.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"weights {path}: expected the state dict of {name}, but entry {key!r} is a "
                f"{type(value).__name__}; a checkpoint holds tensors, bare or under {' or '.join(_NESTED_KEYS)}"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(
                f"weights {path}: {key} holds NaN or infinity; the file is damaged or diverged"
            )
    return entries


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    if state and all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _differences(reader: LipReader, state: dict[str, Tensor]) -> list[str]:
    expected = {key: tuple(value.shape) for key, value in reader.state_dict().items()}
    aliases = {  # published alias key -> the canonical one
        f"{prefix}.{alias}.{leaf}": f"{prefix}.{layer}.{leaf}"
        for prefix, block in reader.named_modules()
        if isinstance(block, TemporalBlock)
        for alias, layer in block.aliases.items()
        for leaf in block.get_submodule(layer).state_dict()
    }
    given = {aliases.get(key, key) for key in state}
    lines = [f"missing {key}" for key in expected if key not in given]
    for key, value in state.items():
        want = expected.get(aliases.get(key, key))
        if want is None:
            lines.append(f"unexpected {key}")
        elif want != tuple(value.shape):
            lines.append(f"{key} has shape {tuple(value.shape)}, not {want}")
    return lines


def _check_fit(reader: LipReader, path: Path, state: dict[str, Tensor]) -> None:
    lines = _differences(reader, state)
    if not lines:
        return
    shown = "\n  ".join(lines[:_SHOWN_DIFFERENCES])
    more = f"\n  ... {len(lines)} differences in all" if len(lines) > _SHOWN_DIFFERENCES else ""
    fitting = [other for other in NETWORKS if other != reader.name and _fits(other, state)]
    hint = f"\nThey fit {' and '.join(fitting)}: name that network instead." if fitting else ""
    raise WeightsError(f"weights {path} are not those of {reader.name}:\n  {shown}{more}{hint}")


def _fits(name: str, state: dict[str, Tensor]) -> bool:
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        return not _differences(build(name), state)
