"""The training loop of the lip encoder: steps, log, checkpoints, a time limit, and what is kept at the end."""

import csv
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from pipeline.lipreading import LipReader, build
from pipeline.synchrony.agreement import AgreementLoss
from pipeline.synchrony.batches import BatchMaker
from pipeline.synchrony.halves import load_halves, save_halves
from pipeline.synchrony.measure import Measured
from pipeline.synchrony.sound import SoundEncoder

logger = logging.getLogger(__name__)

STATE_FILE, LOG_FILE = "last.pt", "log.csv"
KIND = "trained to match mouths with voices"


class SynchronyTraining:
    """Trains both halves; everything that a resumed run needs lies in `<out>/last.pt`.

    Args:
        network: name in `pipeline.lipreading.NETWORKS`.
        loss: of lips and voices.
        optimizer: called with the parameters.
        batches: of the training clips.
        validate: measures both halves, or None.
        out: folder of results.
        total_steps: optimizer steps, over which the rate warms up and falls like a cosine to zero.
        warmup_steps: of them.
        max_grad_norm: gradients are clipped to it.
        val_period, log_step: in steps.
        max_minutes: stops, to be resumed, after so long; None does not.
        settings: recorded with the weights, as text.
    """

    def __init__(
        self,
        *,
        network: str,
        loss: AgreementLoss,
        optimizer: Callable[..., torch.optim.Optimizer],
        batches: BatchMaker,
        validate: Callable[[LipReader, SoundEncoder], Measured] | None,
        out: str | Path,
        total_steps: int,
        warmup_steps: int,
        max_grad_norm: float,
        val_period: int,
        log_step: int,
        max_minutes: float | None,
        settings: dict[str, str],
    ) -> None:
        self.network, self.reader = network, build(network)
        self.sound = SoundEncoder(self.reader.trunk_dim)
        self.loss, self.batches, self.validate = loss, batches, validate
        self.halves = nn.ModuleDict({"lips": self.reader, "sound": self.sound, "loss": loss})
        self.optimizer = optimizer(self.halves.parameters())
        self.scheduler = torch.optim.lr_scheduler.SequentialLR(
            self.optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(self.optimizer, 1 / max(1, warmup_steps), 1, warmup_steps),
                torch.optim.lr_scheduler.CosineAnnealingLR(
                    self.optimizer, max(1, total_steps - warmup_steps)
                ),
            ],
            [warmup_steps],
        )
        self.out, self.max_grad_norm = Path(out), max_grad_norm
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.val_period, self.log_step, self.max_minutes = val_period, log_step, max_minutes
        self.settings, self.step, self.trained_s = settings, 0, 0.0
        self.out.mkdir(parents=True, exist_ok=True)

    def begin_with(self, folder: str | Path) -> None:
        """Take the weights of halves that were trained before; rate and step begin anew.

        Raises:
            ValueError: they are not there, damaged or of another network.
        """
        reader, sound = load_halves(folder)
        if reader.name != self.network:
            raise ValueError(f"init_from={folder}: is of the network {reader.name}, not of {self.network}")
        self.reader.load_state_dict(reader.state_dict())
        self.sound.load_state_dict(sound.state_dict())

    def resume(self) -> None:
        """Go on where `<out>/last.pt` stopped.

        Raises:
            ValueError: there is no such file, or it is of another network or another length of training.
        """
        path = self.out / STATE_FILE
        if not path.is_file():
            raise ValueError(f"resume=true: {path} does not exist; leave it out to begin")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["network"] != self.network:
            raise ValueError(f"{path}: is a run of {state['network']}, not of {self.network}")
        planned = {"total_steps": self.total_steps, "warmup_steps": self.warmup_steps}
        if state.get("schedule") != planned:  # a cosine that is stretched afterwards would rise again
            raise ValueError(
                f"{path}: is a run of {state.get('schedule')}: go on with these, or begin another with out=DIR"
            )
        try:
            self.halves.load_state_dict(state["halves"])
        except RuntimeError as error:  # another version's loss
            raise ValueError(
                f"{path}: cannot be gone on with by this version; begin another with out=DIR init_from={self.out}"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.trained_s = state["step"], state["trained_s"]

    def run(self) -> bool:
        """Train to the end or to the time limit; returns whether the end was reached."""
        began, sums, count = time.monotonic(), defaultdict(float), 0
        before_s = self.trained_s
        with tqdm(total=self.total_steps, initial=self.step, unit="step", disable=None) as bar:
            while self.step < self.total_steps:
                losses = self._step()
                for name, value in losses.items():
                    sums[name] += value
                count += 1
                bar.update()
                self.trained_s = before_s + time.monotonic() - began
                if self.step % self.log_step == 0 or self.step == self.total_steps:
                    self._log("train", {name: value / count for name, value in sums.items()})
                    sums, count = defaultdict(float), 0
                if self.step % self.val_period == 0 or self.step == self.total_steps:
                    self._validate()
                    self.save()
                if self.max_minutes is not None and time.monotonic() - began > 60 * self.max_minutes:
                    break
        self.save()
        return self.step >= self.total_steps

    def _step(self) -> dict[str, float]:
        self.halves.train()
        pictures, mel = self.batches.make(self.step)
        lips = self.reader.temporal(self.reader.frontend(pictures))
        losses = self.loss(lips, self.sound(mel))
        if not torch.isfinite(losses["loss"]):
            raise FloatingPointError(
                f"the loss is {losses['loss'].item()} at step {self.step}: lower optimizer.lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.halves.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    def _validate(self) -> None:
        if self.validate is not None:
            measured = self.validate(self.reader, self.sound)
            logger.info("step %d  %s", self.step, measured)
            names = ("matching", "same_speaker", "offset")
            self._log("val", {name: getattr(measured, name)[0] for name in names})

    def _log(self, part: str, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("step %d  %s  %s  %.1f min", self.step, part, shown, self.trained_s / 60)
        with (self.out / LOG_FILE).open("a", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([self.step, part, name, f"{value:.6g}"] for name, value in values.items())

    def save(self) -> None:
        """Write the state, and both halves as safetensors in half precision."""
        state = {
            "network": self.network,
            "halves": self.halves.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "schedule": {"total_steps": self.total_steps, "warmup_steps": self.warmup_steps},
            "step": self.step,
            "trained_s": self.trained_s,
        }
        partial = self.out / f"{STATE_FILE}.part"
        torch.save(state, partial)
        partial.replace(self.out / STATE_FILE)
        about = {**self.settings, "kind": KIND, "network": self.network, "steps": str(self.step)}
        save_halves(self.out, self.reader.state_dict(), self.sound.state_dict(), about)
