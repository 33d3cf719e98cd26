"""Train a separator: `python train.py [option=value ...]`; without options, on the embedded corpus."""

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pipeline.script_config import check_options, register_resolvers, run_script, usage_errors
from src.datasets.data_utils import get_dataloaders
from src.datasets.preparation import prepare_data
from src.logger.logger import setup_logging
from src.trainer.base_trainer import TrainingDiverged
from src.trainer.model_building import build_model
from src.trainer.trainer import Trainer
from src.utils.init_utils import (
    Rank,
    describe_device,
    init_distributed,
    resolve_device,
    run_folder,
    save_code_state,
    set_random_seed,
)

register_resolvers()


def build_trainer(config: DictConfig, device: str, rank: Rank, run_dir: Path) -> Trainer:
    """Instantiate what the configuration names."""
    logger = setup_logging(run_dir, append=bool(config.trainer.resume_from), is_main=rank.is_main)
    logger.info(f"Device: {describe_device(device)}")
    front_end = prepare_data(config, rank)
    set_random_seed(config.seed)
    dataloaders, batch_transforms = get_dataloaders(config, device)
    if config.trainer.epoch_len is None:
        config.trainer.epoch_len = max(1, len(dataloaders["train"]) // config.trainer.accumulation)
    model = build_model(config, front_end is not None and rank.is_main, logger).to(device)
    plain = OmegaConf.to_container(config, resolve=True)
    writer = None
    if rank.is_main:
        save_code_state(run_dir)
        about = {"logger": logger, "project_config": plain, "save_dir": run_dir}
        writer = instantiate(config.writer, **about, _recursive_=False, _convert_="all")
    optimizer = instantiate(config.optimizer, params=model.parameters())
    return Trainer(
        model=model,
        criterion=instantiate(config.loss).to(device),
        metrics=instantiate(config.metrics),
        optimizer=optimizer,
        lr_scheduler=instantiate(config.scheduler, optimizer=optimizer),
        dataloaders=dataloaders,
        config=plain,
        run_dir=run_dir,
        logger=logger,
        writer=writer,
        rank=rank,
        front_end=front_end,
        batch_transforms=batch_transforms,
    )


def run(config: DictConfig) -> None:
    """Build and train."""
    check_options(config)
    device = resolve_device(config.trainer.device)
    rank = init_distributed(device)
    with run_folder(config.trainer, config.run_name, rank) as run_dir:
        trainer = build_trainer(config, device, rank, run_dir)
    try:
        trainer.train()
    finally:
        if trainer.writer is not None:
            trainer.writer.finish()


@hydra.main(version_base=None, config_path="src/configs", config_name="train")
def main(config: DictConfig) -> None:
    """Train; what a user can mend is one message, not a traceback."""
    try:
        with usage_errors("train.py"):
            run(config)
    except TrainingDiverged as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    run_script(main, "train.py")
