"""Wiring of `python -m pipeline.synchrony`: see the package's docstring."""

import logging
import sys
from functools import partial
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from pipeline.script_config import check_options, run_script
from pipeline.synchrony.clips import ClipStore, list_clips
from pipeline.synchrony.measure import measure


@hydra.main(version_base="1.3", config_path="../configs", config_name="synchrony")
def main(config: DictConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    check_options(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    store = ClipStore(config.memory_gb)
    batches = instantiate(config.batches, list_clips(config.root, "train", config.speakers), store)
    validate = None
    if (Path(config.root) / "audio" / "val").is_dir():
        clips = list_clips(config.root, "val", config.speakers)
        validate = partial(measure, clips=clips, store=store)
    training = instantiate(
        config.training,
        network=config.network,
        loss=instantiate(config.loss),
        optimizer=instantiate(config.optimizer),
        batches=batches,
        validate=validate,
        out=config.out,
        settings={"seed": str(config.seed)},
    )
    if config.resume:
        training.resume()
    elif (training.out / "last.pt").exists():
        raise ValueError(
            f"{training.out} holds a run already: resume=true goes on with it, out=DIR begins another"
        )
    elif config.init_from:
        training.begin_with(config.init_from)
    if training.run():
        print(f"{training.out}: done after {training.step} steps, {training.trained_s / 60:.0f} minutes")
    else:
        print(f"{training.out}: stopped at step {training.step}; the same command with resume=true goes on")


if __name__ == "__main__":
    run_script(main, "python -m pipeline.synchrony")
