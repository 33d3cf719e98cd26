"""Training and validation of one batch."""

from typing import Any

import torch
from torch import Tensor

from src.datasets.lips import FRAME_SAMPLES
from src.logger.utils import plot_spectrogram
from src.metrics.tracker import MetricTracker
from src.trainer.base_trainer import BaseTrainer, TrainingDiverged
from src.trainer.exchanged_estimates import exchange_for_a_while

SAMPLE_RATE_HZ = 16000


class Trainer(BaseTrainer):
    """Separator trainer: forward, loss, backward, metrics; audio and spectrograms for the writer."""

    def move_batch_to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move the tensors named in `trainer.device_tensors`; the rest stays."""
        wanted = self.settings["device_tensors"]
        return {
            key: value.to(self.device, non_blocking=True)
            if key in wanted and isinstance(value, Tensor)
            else value
            for key, value in batch.items()
        }

    def transform_batch(self, batch: dict[str, Any], *, is_train: bool) -> dict[str, Any]:
        """Apply the batch transforms, a module per key."""
        transforms = self.batch_transforms.get("train" if is_train else "inference") or {}
        return {**batch, **{key: transform(batch[key]) for key, transform in transforms.items()}}

    def process_batch(
        self, batch: dict[str, Any], tracker: MetricTracker, *, is_train: bool
    ) -> dict[str, Any]:
        """See `BaseTrainer.process_batch`.

        Returns:
            The batch with `estimates` (B, S, T) and the criterion's losses.

        Raises:
            TrainingDiverged: the loss is not finite; names the mixtures.
        """
        batch = self.transform_batch(self.move_batch_to_device(batch), is_train=is_train)
        if is_train and self._refines():
            # An autocast of its own: the copies of weights that it keeps have no gradients.
            with torch.no_grad(), self._autocast():
                earlier = self.trained(**batch)["estimates"].float()
            batch["earlier"] = exchange_for_a_while(earlier, self.settings["exchanged_share"])
        with self._autocast():
            outputs = self.trained(**batch) if is_train else self._separate_unpadded(batch)
        batch = {**batch, **outputs, "estimates": outputs["estimates"].float()}
        batch.update(self.criterion(**batch))
        if not torch.isfinite(batch["loss"]):
            raise TrainingDiverged(
                f"the loss is {batch['loss'].item()} at step {self.step} (mixtures {batch['utt_id']}): lower "
                "optimizer.lr, or look at these files; the last checkpoint is whole"
            )
        if is_train:
            (batch["loss"] / self.accumulation).backward()
        size = batch["mix"].shape[0]
        tracker.update("loss", batch["loss"].item(), n=size)
        with torch.inference_mode():
            for metric in self.metrics["train" if is_train else "inference"]:
                tracker.update(metric.name, metric(**batch), n=size)
        return batch

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _refines(self) -> bool:
        """Whether this step trains a pass that goes on from an earlier one; such steps are spread evenly."""
        share = self.settings["refining_share"] if getattr(self.model, "refines", False) else 0.0
        return int((self.step + 1) * share) > int(self.step * share)

    def _separate_unpadded(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Outputs of the model for items of one length at a time, so that none depends on what it is padded to.

        Shape: outputs of items (B, ...), the last axis of `estimates` padded with zeros.
        """
        lengths = batch["lengths"].tolist()
        if len(set(lengths)) == 1:
            return self.model(**batch)
        outputs: dict[str, Tensor] = {}
        for length in sorted(set(lengths), reverse=True):
            rows = [row for row, own in enumerate(lengths) if own == length]
            some = {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor)}
            some["mix"] = some["mix"][..., :length]
            if "visual" in some:
                some["visual"] = some["visual"][:, :, : -(-length // FRAME_SAMPLES)]
            for key, value in self.model(**some).items():
                if key not in outputs:  # the longest come first
                    outputs[key] = value.new_zeros(len(lengths), *value.shape[1:])
                if key == "estimates":
                    outputs[key][rows, :, :length] = value
                else:
                    outputs[key][rows] = value
        return outputs

    def log_examples(self, batch: dict[str, Any], part: str) -> None:
        """First mixtures of the first batch: mixture, estimates and truth, to hear and to see."""
        for row in range(min(self.settings["log_examples"], batch["mix"].shape[0])):
            name = batch["utt_id"][row]
            length = int(batch["lengths"][row])
            signals = {"mix": batch["mix"][row]}
            for voice in range(batch["estimates"].shape[1]):
                signals[f"s{voice + 1}_estimate"] = batch["estimates"][row, voice]
                signals[f"s{voice + 1}_truth"] = batch["sources"][row, voice]
            for kind, signal in signals.items():
                signal = signal[:length].detach().cpu()
                self.writer.add_audio(f"{name}_{kind}", signal, SAMPLE_RATE_HZ)
                self.writer.add_image(f"{name}_{kind}", plot_spectrogram(signal, SAMPLE_RATE_HZ))
