"""What is measured: a model, its inputs, and the steps it is asked for.

A workload is plain data, so that another process can be given it. Inputs are random: time, memory and operations do
not depend on their values.

Axes: B batch, S = 2 voices, T samples (16 kHz), F video frames (25 per second), D lip embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from pipeline.frontend import FrontEnd
from pipeline.mouths import CROP, FRAME_RATE_HZ

SAMPLE_RATE_HZ = 16_000
NUM_VOICES = 2
SEPARATOR, LIP_READER, BOTH = "separator", "lip reader", "both"
INFERENCE, TRAINING = "inference", "training"


@dataclass(frozen=True)
class LipReaderChoice:
    """A lip-reading network with a file of weights.

    Attributes:
        network: name in `pipeline.lipreading.NETWORKS`.
        features: as of `pipeline.frontend.FrontEnd`.
        weights: file.
    """

    network: str
    features: str
    weights: str

    def load(self, device: str) -> FrontEnd:
        """The network on a device, in the precision that is best there."""
        return FrontEnd(network=self.network, weights=self.weights, features=self.features, device=device)


@dataclass(frozen=True)
class Workload:
    """One model and the size of its input.

    Attributes:
        model, loss, optimizer: configurations with `_target_`, without interpolations.
        lip_reader: None for a separator that takes no lips.
        lip_dim: D, 0 without lips.
        seconds: duration of every mixture.
        batch_size: B.
        device: where all of it runs.
    """

    model: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    lip_reader: LipReaderChoice | None
    lip_dim: int
    seconds: float
    batch_size: int
    device: str

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be measured: the separator on embeddings that are there, the lip reader, and both in a row."""
        return (SEPARATOR,) if self.lip_reader is None else (SEPARATOR, LIP_READER, BOTH)


def make_step(
    work: Workload, part: str, kind: str, front_end: FrontEnd | None = None
) -> Callable[[], Tensor]:
    """Build what a step needs and return the step.

    Training of "both" is a training step whose embeddings are computed in it, as without a cache.

    Args:
        work: model and input.
        part: one of `work.parts`.
        kind: "inference" or "training" (forward, loss, backward, optimiser); the lip reader is never trained.
        front_end: the lip reader, where it is loaded already.
    """
    if part == SEPARATOR:
        step, batch = _separator_step(work, kind), _random_batch(work)
        return lambda: step(batch)
    read = _lip_reader_step(work, front_end or work.lip_reader.load(work.device))
    if part == LIP_READER:
        return read
    step, batch = _separator_step(work, kind), _random_batch(work)
    return lambda: step({**batch, "visual": read()})


def _separator_step(work: Workload, kind: str) -> Callable[[dict[str, Tensor]], Tensor]:
    torch.manual_seed(0)
    model = instantiate(work.model).to(work.device)
    if kind == INFERENCE:
        model.eval()

        def infer(batch: dict[str, Tensor]) -> Tensor:
            with torch.inference_mode():
                return model(**batch)["estimates"]

        return infer

    model.train()
    criterion = instantiate(work.loss).to(work.device)
    optimizer = instantiate(work.optimizer, params=model.parameters())

    def train(batch: dict[str, Tensor]) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(**{**batch, **model(**batch)})["loss"]
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


def _lip_reader_step(work: Workload, front_end: FrontEnd) -> Callable[[], Tensor]:
    shape = (NUM_VOICES * work.batch_size, _num_frames(work), CROP, CROP)
    videos = list(np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8))

    def read() -> Tensor:
        embeddings = torch.from_numpy(np.stack(front_end.embed_clips(videos)))
        return embeddings.to(work.device, torch.float32).unflatten(0, (work.batch_size, NUM_VOICES))

    return read


def _random_batch(work: Workload) -> dict[str, Tensor]:
    """mix (B, T), sources (B, S, T), visual (B, S, F, D), visual_mask (B, S); the last two only with lips."""
    generator = torch.Generator().manual_seed(0)
    samples = round(work.seconds * SAMPLE_RATE_HZ)
    sources = 0.1 * torch.randn(work.batch_size, NUM_VOICES, samples, generator=generator)
    batch = {"mix": sources.sum(dim=1), "sources": sources}
    if work.lip_reader is not None:
        shape = (work.batch_size, NUM_VOICES, _num_frames(work), work.lip_dim)
        batch["visual"] = torch.randn(shape, generator=generator)
        batch["visual_mask"] = torch.ones(shape[:2], dtype=torch.bool)
    return {key: value.to(work.device) for key, value in batch.items()}


def _num_frames(work: Workload) -> int:
    return max(1, round(work.seconds * FRAME_RATE_HZ))
