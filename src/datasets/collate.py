"""Items to a batch.

Axes: B items, S = 2 speakers, T samples, F video frames, D values in an embedding; T and F of the longest item.
"""

from typing import Any

import torch

_PADDED_AXIS = {"mix": -1, "sources": -1, "visual": -2}


def collate_fn(dataset_items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to a batch, padded with zeros to the longest.

    Args:
        dataset_items: items as ``src.datasets.mixture`` tells them.

    Returns:
        The batch: ``mix`` (B, T), ``sources`` (B, S, T), ``visual`` (B, S, F, D), ``sources_mask`` and
        ``visual_mask`` (B, S), ``lengths`` (B,) samples of each mix before padding, other tensors stacked, and
        everything else as a list of B. ``sources`` is absent when no item has it, and zeros (with ``sources_mask``
        False) for those that lack it when others do.
    """
    batch: dict[str, Any] = {
        "lengths": torch.tensor([item["mix"].numel() for item in dataset_items], dtype=torch.int64)
    }
    keys = dict.fromkeys(key for item in dataset_items for key in item)
    for key in keys:
        if key == "sources":
            values = [item.get(key, torch.zeros(2, item["mix"].numel())) for item in dataset_items]
        else:
            values = [item[key] for item in dataset_items]
        if key in _PADDED_AXIS:
            batch[key] = _pad_and_stack(values, _PADDED_AXIS[key])
        elif isinstance(values[0], torch.Tensor):
            batch[key] = torch.stack(values)
        else:
            batch[key] = values
    return batch


def _pad_and_stack(tensors: list[torch.Tensor], axis: int) -> torch.Tensor:
    longest = max(tensor.shape[axis] for tensor in tensors)
    shape = list(tensors[0].shape)
    shape[axis] = longest
    padded = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(padded, tensors):
        row.narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
    return padded
