"""What a trainer hands to a writer (tensors, arrays, mappings), in the few forms the services take."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Table = Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]


def to_array(values: Any) -> np.ndarray:
    """A tensor on any device, an array or nested lists as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if not values.dtype.is_floating_point:
            return values.numpy()
        # NumPy knows no bfloat16, which is what autocast leaves behind.
        return values.float().numpy()
    return np.asarray(values)


def image_array(image: Any) -> np.ndarray:
    """An image as uint8 RGB.

    Args:
        image: array or tensor, grey (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4; uint8, or floats in
            0..1.

    Shape:
        returns (H, W, 3), or (H, W, 4) where the image has an alpha channel.

    Raises:
        ValueError: the shape is none of these.
    """
    pixels = to_array(image)
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"image of shape {pixels.shape}: expected (H, W), or (H, W, C) or (C, H, W) with C = 1, 3, 4"
        )
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    if pixels.dtype != np.uint8:
        pixels = np.round(np.clip(np.nan_to_num(pixels.astype(np.float32)), 0.0, 1.0) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def audio_array(audio: Any) -> np.ndarray:
    """Audio as float32, level untouched.

    Shape:
        audio: (T,), (1, T) or (C, T). Returns (T,) for one channel, (T, C) otherwise.

    Raises:
        ValueError: more than two axes.
    """
    samples = to_array(audio).astype(np.float32, copy=False)
    if samples.ndim == 2:
        samples = samples[0] if samples.shape[0] == 1 else samples.T
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"audio of shape {samples.shape}: expected (T,) or (C, T); log the items of a batch apart"
        )
    return np.ascontiguousarray(samples)


def finite_values(values: Any) -> np.ndarray:
    """The finite ones of the values as (N,) float64: binning would fail on the others."""
    flat = to_array(values).astype(np.float64).ravel()
    return flat[np.isfinite(flat)]


def histogram(values: Any, num_bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Counts and bin edges of the finite values.

    Shape:
        values: any. Returns counts (num_bins,) and edges (num_bins + 1,).
    """
    return np.histogram(finite_values(values), bins=num_bins)


def table_rows(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Columns, in order of first appearance, and rows; a value that a row lacks is None.

    Args:
        table: a list of rows, each a mapping from column to value; or a mapping from row name to such a row,
            whose names become the first column ``name``.
    """
    if isinstance(table, Mapping):
        records = [{"name": name, **row} for name, row in table.items()]
    else:
        records = list(table)
    columns = list(dict.fromkeys(column for record in records for column in record))
    return columns, [[_plain(record.get(column)) for column in columns] for record in records]


def plain_config(config: Any) -> dict[str, Any]:
    """The configuration as plain dicts and lists: Hydra hands nested arguments over as its own containers."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else dict(config)


def _plain(value: Any) -> Any:
    # Scalars of NumPy and torch, which the services' serialisers refuse.
    return value.item() if hasattr(value, "item") else value
