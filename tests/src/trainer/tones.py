"""A data set of tones in memory, and the trainer on it, for tests of the training loop."""

import copy
import logging
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf

from pipeline.script_config import register_resolvers
from src.datasets.base_dataset import BaseDataset
from src.datasets.data_utils import get_dataloaders
from src.trainer.trainer import Trainer
from src.utils.init_utils import Rank, set_random_seed

SAMPLES, DIM = 4000, 8


class Tones(BaseDataset):
    """Two tones a mixture; the way a voice's lip embedding moves tells its pitch. Items with `poison` hold a NaN."""

    def __init__(self, num_items: int, poison: int | None = None, seed: int = 0) -> None:
        super().__init__([{"number": i} for i in range(num_items)], seed=seed)
        self.poison = poison

    def load_instance(self, ind: int) -> dict:
        pitches = 200 + 1800 * torch.rand(2, 1)
        sources = 0.1 * torch.sin(6.283 * pitches * torch.arange(SAMPLES) / 16000)
        if ind == self.poison:
            sources[0, 0] = float("nan")
        return {
            "mix": sources.sum(0),
            "sources": sources,
            "sources_mask": torch.ones(2, dtype=torch.bool),
            "visual": (pitches / 1000 * torch.arange(1, DIM + 1)).sin()[:, None]
            * torch.linspace(-1, 1, 7)[:, None],
            "visual_mask": torch.ones(2, dtype=torch.bool),
            "utt_id": f"tones{ind:02d}",
            "ids": (f"a{ind}", f"b{ind}"),
        }


class MemoryWriter:
    """Keeps what the trainer logs."""

    def __init__(self) -> None:
        self.scalars: list[tuple[int, str, str, float]] = []
        self.calls: list[str] = []

    def set_step(self, step: int, mode: str = "train") -> None:
        self.step, self.mode = step, mode

    def add_scalar(self, name: str, value: float) -> None:
        self.scalars.append((self.step, self.mode, name, value))

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.calls.append(name)


def compose(*overrides: str):
    """The training configuration with a small model on tones."""
    register_resolvers()
    with hydra.initialize(version_base=None, config_path="../../../src/configs"):
        config = hydra.compose(
            "train",
            overrides=[
                "cache=unused", f"visual_dim={DIM}", "model.num_bands=8", "model.channels=8", "model.squeezed=2",
                "model.shared_blocks=1", "model.voice_blocks=2", "model.cue_channels=8", "metrics=si_snr_only",
                "dataloader.num_workers=0", "dataloader.batch_size=2", "trainer.n_epochs=4", "trainer.epoch_len=3",
                "trainer.device=cpu", "scheduler.warmup_steps=2", "optimizer=adamw", "optimizer.fused=false",
                *overrides,
            ],
        )  # fmt: skip
    OmegaConf.set_struct(config, False)
    dataset = {"_target_": f"{__name__}.Tones", "num_items": 10, "seed": config.seed}
    config.datasets = {"train": dataset, "val": {**dataset, "num_items": 4}}
    return config


def make_trainer(run_dir: Path, *overrides: str, config=None, **parts) -> Trainer:
    """A trainer on tones; `parts` replace arguments of the trainer."""
    torch.set_num_threads(1)
    config = compose(*overrides) if config is None else copy.deepcopy(config)
    set_random_seed(config.seed)
    loaders, batch_transforms = get_dataloaders(config, "cpu")
    model = hydra.utils.instantiate(config.model)
    optimizer = hydra.utils.instantiate(config.optimizer, params=model.parameters())
    run_dir.mkdir(parents=True, exist_ok=True)
    arguments = {
        "model": model,
        "criterion": hydra.utils.instantiate(config.loss),
        "metrics": hydra.utils.instantiate(config.metrics),
        "optimizer": optimizer,
        "lr_scheduler": hydra.utils.instantiate(config.scheduler, optimizer=optimizer),
        "dataloaders": loaders,
        "config": OmegaConf.to_container(config, resolve=True),
        "run_dir": run_dir,
        "logger": logging.getLogger("tones"),
        "writer": MemoryWriter(),
        "rank": Rank(0, 1, 0),
        "batch_transforms": batch_transforms,
    }
    return Trainer(**{**arguments, **parts})
