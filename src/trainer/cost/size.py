"""What a model measures on any device: parameters, operations, bytes on disk."""

from dataclasses import dataclass

import safetensors.torch
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from pipeline.lipreading import build
from src.trainer.cost.macs import MacCount, count_macs
from src.trainer.cost.workload import BOTH, INFERENCE, LIP_READER, SEPARATOR, Workload, make_step


@dataclass(frozen=True)
class Size:
    """What is the same on every device.

    Attributes:
        parameters, trainable: numbers of values.
        macs: of inference on the whole batch.
        fp32_bytes, fp16_bytes: of the state dict as a safetensors file.
    """

    parameters: int
    trainable: int
    macs: MacCount
    fp32_bytes: int
    fp16_bytes: int

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.parameters + other.parameters,
            self.trainable + other.trainable,
            self.macs + other.macs,
            self.fp32_bytes + other.fp32_bytes,
            self.fp16_bytes + other.fp16_bytes,
        )


def measure_sizes(work: Workload) -> dict[str, Size]:
    """Sizes of the separator, of what is used of its lip reader, and of both, by part."""
    sizes = {SEPARATOR: _size(instantiate(work.model), count_macs(make_step(work, SEPARATOR, INFERENCE)))}
    if work.lip_reader is not None:
        reader = build(work.lip_reader.network)
        used = [reader.frontend3D, reader.trunk]
        if work.lip_reader.features == "tcn":
            used.append(reader.tcn.trunk)
        macs = count_macs(make_step(work, LIP_READER, INFERENCE))
        sizes[LIP_READER] = _size(nn.ModuleList(used).requires_grad_(False), macs)
        sizes[BOTH] = sizes[SEPARATOR] + sizes[LIP_READER]
    return sizes


def _size(model: nn.Module, macs: MacCount) -> Size:
    parameters = list(model.parameters())
    return Size(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        macs=macs,
        fp32_bytes=disk_bytes(model.state_dict(), torch.float32),
        fp16_bytes=disk_bytes(model.state_dict(), torch.float16),
    )


def disk_bytes(state: dict[str, Tensor], dtype: torch.dtype) -> int:
    """Size of a safetensors file of the state in a precision; tensors under several names are stored once."""
    stored, seen = {}, set()
    for name, value in state.items():
        storage = (value.data_ptr(), value.shape, value.stride())
        if value.numel() and storage in seen:
            continue
        seen.add(storage)
        stored[name] = value.to(dtype if value.is_floating_point() else value.dtype).contiguous().clone()
    return len(safetensors.torch.save(stored))
