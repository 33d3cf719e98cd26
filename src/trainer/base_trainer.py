"""The training loop: epochs of optimizer steps, validation, model selection, checkpoints.

What happens to one batch is left to `Trainer`.
"""

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from logging import Logger
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.bfloat16 import has_bfloat16
from src.datasets.data_utils import inf_loop
from src.metrics.tracker import MetricTracker
from src.trainer.checkpoint import BEST, LAST, CheckpointError, load_checkpoint, save_checkpoint
from src.trainer.ema import WeightAverage
from src.trainer.half_weights import HalfWeights
from src.utils.init_utils import Rank

AMP = ("auto", "bfloat16", "bfloat16_weights", "off")


def autocasts(amp: str, device: torch.device) -> bool:
    """Whether training runs under autocast to bfloat16: `auto` does where a GPU computes in it (a T4 does not)."""
    return amp == "bfloat16" or (amp == "auto" and device.type == "cuda" and has_bfloat16(device))


def with_defaults(model: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model, those that it did not have yet when they were written down at their defaults."""
    parameters = inspect.signature(type(model)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (defaults | options).items()
    }


class TrainingDiverged(RuntimeError):
    """A loss or gradient that is not finite; the message names the batch and the remedy."""


class BaseTrainer(ABC):
    """Trains a separator.

    Args:
        model, criterion, optimizer, lr_scheduler: as instantiated from the configuration. The scheduler steps
            once per optimizer step.
        metrics: {"train": [...], "inference": [...]} of BaseMetric.
        dataloaders: {"train": ..., other parts are validated}.
        config: the whole configuration as a plain dict (kept in checkpoints); the key `trainer` is read here:
            n_epochs, epoch_len (optimizer steps an epoch, null for one pass), device, device_tensors, log_step,
            val_period, save_period, monitor ("max val_SI-SNRi"), early_stop (validations without improvement,
            null for never), resume_from, max_minutes, accumulation, max_grad_norm, ema_decay, amp, compile,
            log_examples.
        run_dir: folder of the run.
        logger: text log.
        writer: experiment tracker, or None (ranks other than the first).
        rank: this process.
        front_end: identity of the lip embeddings, kept in checkpoints; None without lips.
        batch_transforms: {"train"/"inference": {key: module}} applied on the device, or None.

    Raises:
        ValueError: `monitor` names no metric that validation computes, `amp` is unknown or not for this model, or a
            number of steps or epochs is below 1.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        criterion: nn.Module,
        metrics: Mapping[str, list],
        optimizer: Optimizer,
        lr_scheduler: LRScheduler | None,
        dataloaders: Mapping[str, DataLoader],
        config: dict[str, Any],
        run_dir: Path,
        logger: Logger,
        writer: Any,
        rank: Rank,
        front_end: dict[str, Any] | None = None,
        batch_transforms: Mapping[str, Mapping[str, Callable] | None] | None = None,
    ) -> None:
        settings = config["trainer"]
        for key in ("n_epochs", "accumulation", "log_step", "val_period"):
            if settings[key] < 1:
                raise ValueError(f"trainer.{key}={settings[key]}: take 1 or more")
        if settings["epoch_len"] is not None and settings["epoch_len"] < 1:
            raise ValueError(
                f"trainer.epoch_len={settings['epoch_len']}: take 1 or more, or null for one pass"
            )
        self.config, self.settings = config, settings
        self.model, self.criterion = model, criterion
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.metrics, self.batch_transforms = metrics, batch_transforms or {}
        self.run_dir, self.logger, self.writer, self.rank = run_dir, logger, writer, rank
        self.front_end = front_end
        self.device = next(model.parameters()).device
        self.train_loader = dataloaders["train"]
        self.evaluation_loaders = {part: loader for part, loader in dataloaders.items() if part != "train"}
        self.accumulation = settings["accumulation"]
        self.epoch_len = settings["epoch_len"] or max(1, len(self.train_loader) // self.accumulation)
        self.average = WeightAverage(model, settings["ema_decay"]) if settings["ema_decay"] else None
        for share in ("refining_share", "exchanged_share"):
            if not 0 <= settings[share] <= 1:
                raise ValueError(f"trainer.{share}={settings[share]}: must lie in 0..1")
        if settings["amp"] not in AMP:
            raise ValueError(f"trainer.amp={settings['amp']}: choose one of {', '.join(AMP)}")
        self.amp = autocasts(settings["amp"], self.device)
        self.mode, self.monitored = self._parse_monitor(settings["monitor"])
        self.best: float | None = None
        self.validations_without_gain = 0
        self.step = 0
        self.stopped_by_time = False
        self.trained = self._wrap(model)
        self.train_tracker = MetricTracker("loss", "grad_norm", *(m.name for m in metrics["train"]))
        self.evaluation_tracker = MetricTracker("loss", *(m.name for m in metrics["inference"]))
        if settings["resume_from"]:
            self._resume(settings["resume_from"])

    def _wrap(self, model: nn.Module) -> nn.Module:
        """What the training step calls: the model, compiled and shared among processes as configured."""
        if self.settings["amp"].startswith("bfloat16") and not has_bfloat16(self.device):
            self.logger.warning(
                f"trainer.amp={self.settings['amp']}: {self.device} does not compute in bfloat16 and emulates it, many "
                "times slower than float32: take trainer.amp=off"
            )
        trained = HalfWeights(model) if self.settings["amp"] == "bfloat16_weights" else model
        trained = torch.compile(trained) if self.settings["compile"] else trained
        if self.rank.world_size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            # A pass that refines leaves out what finds the order, and a first one what refines.
            some = getattr(model, "refines", False)
            trained = DistributedDataParallel(trained, device_ids=devices, find_unused_parameters=some)
        return trained

    def _parse_monitor(self, monitor: str | None) -> tuple[str | None, str | None]:
        if not monitor or monitor == "off":
            return None, None
        mode, _, key = monitor.partition(" ")
        names = ["loss", *(metric.name for metric in self.metrics["inference"])]
        known = [f"{part}_{name}" for part in self.evaluation_loaders for name in names]
        if mode not in ("min", "max") or key not in known:
            raise ValueError(
                f"trainer.monitor={monitor!r} must be 'min' or 'max' and one of {known}: mend it, or "
                "trainer.monitor=off to keep the last weights only"
            )
        return mode, key

    @abstractmethod
    def process_batch(
        self, batch: dict[str, Any], tracker: MetricTracker, *, is_train: bool
    ) -> dict[str, Any]:
        """Move a batch to the device, run the model, backpropagate in training, record loss and metrics."""

    @abstractmethod
    def log_examples(self, batch: dict[str, Any], part: str) -> None:
        """Send some audio and spectrograms of a batch to the writer."""

    def train(self) -> None:
        """Run until all epochs are done, validation stops improving, or time is up.

        Raises:
            TrainingDiverged: a loss or gradient is not finite.
        """
        limit = self.settings["max_minutes"]
        self.deadline = time.monotonic() + 60 * limit if limit else None
        batches = inf_loop(self.train_loader, start=self.step * self.accumulation)
        first = self.step // self.epoch_len + 1
        for epoch in range(first, self.settings["n_epochs"] + 1):
            self._train_epoch(epoch, batches)
            whole = self.step % self.epoch_len == 0
            improved = self._validate(epoch) if whole and epoch % self.settings["val_period"] == 0 else False
            # The best first: the last one knows of it, and a kill in between must not leave it unwritten.
            if improved:
                self._save(epoch, BEST)
            self._save(epoch, LAST)
            if self.stopped_by_time:
                self.logger.info(
                    f"Stopped after {limit} minutes at step {self.step}: continue with trainer.resume_from=last.pt"
                )
                break
            if self.settings["save_period"] and epoch % self.settings["save_period"] == 0:
                self._save(epoch, f"epoch-{epoch:04d}.pt")
            patience = self.settings["early_stop"]
            if patience and self.validations_without_gain >= patience:
                self.logger.info(
                    f"{self.monitored} has not improved in {patience} validations: stopped early"
                )
                break

    def _train_epoch(self, epoch: int, batches: Iterator[dict[str, Any]]) -> None:
        self.model.train()
        self.train_tracker.reset()
        done = self.step % self.epoch_len
        bar = tqdm(
            total=self.epoch_len, initial=done, desc=f"epoch {epoch}", unit="step", leave=False,
            disable=None if self.rank.is_main else True,
        )  # fmt: skip
        with bar:
            for _ in range(done, self.epoch_len):
                self._optimizer_step(batches)
                bar.update()
                if self.step % self.settings["log_step"] == 0 or self.step % self.epoch_len == 0:
                    self._log_training(epoch)
                if self._time_is_up():
                    self.stopped_by_time = True
                    break

    def _optimizer_step(self, batches: Iterator[dict[str, Any]]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for i in range(self.accumulation):
            batch = next(batches)
            last = i + 1 == self.accumulation
            if isinstance(self.trained, DistributedDataParallel) and not last:
                with self.trained.no_sync():
                    self.process_batch(batch, self.train_tracker, is_train=True)
            else:
                self.process_batch(batch, self.train_tracker, is_train=True)
        limit = self.settings["max_grad_norm"] or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)  # the norm before clipping
        if not torch.isfinite(norm):
            raise TrainingDiverged(
                f"the gradient is not finite at step {self.step} (mixtures {batch['utt_id']}): lower "
                "optimizer.lr, or look at these files; the last checkpoint is whole"
            )
        self.train_tracker.update("grad_norm", norm.item())
        self.optimizer.step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1

    def _time_is_up(self) -> bool:
        if self.deadline is None:
            return False
        up = torch.tensor(float(time.monotonic() > self.deadline), device=self.device)
        if self.rank.world_size > 1:  # all ranks must leave at the same step
            dist.all_reduce(up, op=dist.ReduceOp.MAX)
        return bool(up.item())

    def _log_training(self, epoch: int) -> None:
        self.train_tracker.all_reduce()
        result = self.train_tracker.result()
        rate = self.optimizer.param_groups[0]["lr"]
        shown = "  ".join(f"{name} {value:.4g}" for name, value in result.items())
        self.logger.info(f"epoch {epoch}  step {self.step}  lr {rate:.2e}  {shown}")
        if self.writer is not None:
            self.writer.set_step(self.step, "train")
            for name, value in {"learning_rate": rate, **result}.items():
                self.writer.add_scalar(name, value)
        self.train_tracker.reset()

    def _validate(self, epoch: int) -> bool:
        """Evaluate every part but train; whether the monitored figure improved."""
        results: dict[str, float] = {}
        averaged = self.average.swapped_in(self.model) if self.average is not None else nullcontext()
        with averaged:
            for part, loader in self.evaluation_loaders.items():
                results.update(self._evaluate(epoch, part, loader))
        if self.monitored is None:
            return False
        value = results.get(self.monitored)
        if value is None:
            raise TrainingDiverged(
                f"{self.monitored} has no value after epoch {epoch}: no voice of the validation part can be scored, "
                "for all estimates or all truths are silent"
            )
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better:
            self.best, self.validations_without_gain = value, 0
        else:
            self.validations_without_gain += 1
        return better

    @torch.inference_mode()
    def _evaluate(self, epoch: int, part: str, loader: DataLoader) -> dict[str, float]:
        self.model.eval()
        tracker = self.evaluation_tracker
        tracker.reset()
        if self.writer is not None:
            self.writer.set_step(self.step, part)
        bar = tqdm(loader, desc=part, unit="batch", leave=False, disable=None if self.rank.is_main else True)
        for number, batch in enumerate(bar):
            outputs = self.process_batch(batch, tracker, is_train=False)
            if number == 0 and self.writer is not None:
                self.log_examples(outputs, part)
        tracker.all_reduce()
        result = tracker.result()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in result.items())
        self.logger.info(f"epoch {epoch}  {part}  {shown}")
        if self.writer is not None:
            for name, value in result.items():
                self.writer.add_scalar(name, value)
            self.writer.add_table("metrics", [{"epoch": epoch, **result}])
        return {f"{part}_{name}": value for name, value in result.items()}

    def _save(self, epoch: int, name: str) -> None:
        if not self.rank.is_main:
            return
        content = {
            "arch": type(self.model).__name__,
            "epoch": epoch,
            "step": self.step,
            "state_dict": self.model.state_dict(),
            "ema": self.average.state_dict() if self.average is not None else None,
            "ema_updates": self.average.updates if self.average is not None else 0,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler is not None else None,
            "monitor_best": self.best,
            "validations_without_gain": self.validations_without_gain,
            "config": self.config,
            "front_end": self.front_end,
            "rng": {"cpu": torch.get_rng_state(), "cuda": self._gpu_rng_state()},
        }
        save_checkpoint(self.run_dir / name, content)
        if self.writer is not None and name == BEST:
            self.writer.add_checkpoint(str(self.run_dir / name), str(self.run_dir))

    def _gpu_rng_state(self) -> torch.Tensor | None:
        """Random state of this process's GPU, which is that of all processes: they begin alike and draw alike."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _resume(self, name: str) -> None:
        path = self.run_dir / name if (self.run_dir / name).is_file() else Path(name)
        checkpoint = load_checkpoint(path)
        if not checkpoint.get("optimizer"):
            raise CheckpointError(
                f"checkpoint {path} holds weights alone: begin with them by trainer.init_from={path}, or resume a run "
                "from its last.pt"
            )
        sides = (checkpoint["config"], self.config)
        if unlike := _unlike(*(with_defaults(self.model, side["model"]) for side in sides), prefix="model."):
            raise CheckpointError(
                f"checkpoint {path} was trained with another model configuration: resume with {unlike}"
            )
        if unlike := _unlike(*map(_kept_in_checkpoint, sides)):
            raise CheckpointError(
                f"checkpoint {path} goes on as it began: resume with {unlike}, or begin anew with its weights: "
                f"trainer.init_from={path}"
            )
        self._check_front_end(checkpoint["front_end"], path)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.lr_scheduler is not None and checkpoint["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        if self.average is not None and checkpoint["ema"] is not None:
            self.average.load_state_dict(checkpoint["ema"], checkpoint["ema_updates"])
        self.step, self.best = checkpoint["step"], checkpoint["monitor_best"]
        self.validations_without_gain = checkpoint["validations_without_gain"]
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        if self.device.type == "cuda" and isinstance(checkpoint["rng"]["cuda"], torch.Tensor):
            torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], self.device)
        self.logger.info(f"Resumed {path} after epoch {checkpoint['epoch']}, step {self.step}")

    def _check_front_end(self, trained_on: dict[str, Any] | None, path: Path) -> None:
        """Lip embeddings of other weights mean something else: refuse to train on with them."""
        for key in ("network", "weights_sha256", "preprocessing_version", "features"):
            before, now = ((side or {}).get(key) for side in (trained_on, self.front_end))
            if before != now:
                raise CheckpointError(
                    f"checkpoint {path} was trained on lip embeddings with {key}={before}, the cache has {now}: "
                    "pass the cache that it was trained on"
                )


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> str:
    """Options that differ, as the command line would set them to what they were; empty where none does."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return " ".join(f"{prefix}{name}={before.get(name)}" for name in names)


def _kept_in_checkpoint(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose values a checkpoint brings back, whatever the command line says."""
    options = {f"optimizer.{key}": value for key, value in config["optimizer"].items()}
    options["scheduler._target_"] = (config.get("scheduler") or {}).get("_target_")
    return {**options, "trainer.monitor": config["trainer"]["monitor"]}
