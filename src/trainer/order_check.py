"""A second look at which of two separated voices moves with whose lips.

A separator decides on the order of the voices before they are apart. Once they are, a sound encoder that was trained
with the lip encoder, on voices alone (`pipeline.synchrony`), can hear each of them: where it contradicts the
separator, the voices are exchanged. On speech unlike the training data of both it errs less often.

Axes: B windows, S = 2 voices, T samples at 16 kHz, F video frames, D lip embedding.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.lipreading.weights import file_digest
from pipeline.synchrony.agreement import overlap_agreement
from pipeline.synchrony.halves import load_sound, sound_of
from pipeline.synchrony.sound import MEL_PER_FRAME, LogMel, SoundEncoder
from src.trainer.lip_source import weights_candidates
from src.trainer.separator import SHIPPED, Separator

# Fitted on mixtures of validation faces and on the embedded synthetic corpus, see weights/README.md.
_REACH = 2  # frames that lips may be out of step with the voice
_COST_OF_A_FRAME = 0.03  # of such a lag, in agreement
_WEIGHT_OF_LOG_ODDS = 0.1  # agreement over two seconds that one unit of the separator's log odds is worth
_FITTED_FRAMES = 50
_LEAST_FRAMES = 25  # a second: less says too little
_LEVEL = 0.17  # RMS of a mixture whose voices are as loud as those that the encoder was trained on


class OrderCheck:
    """Tells which windows' voices contradict the lips.

    Args:
        sound: trained with the lip encoder whose embeddings the separator takes.
        device: where it runs.
    """

    def __init__(self, sound: SoundEncoder, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._sound, self._mel = sound.to(self.device).eval(), LogMel().to(self.device)

    @torch.inference_mode()
    def exchanged(
        self, mix: Tensor, estimates: Tensor, visual: Tensor, used: Tensor, order: Tensor | None = None
    ) -> Tensor:
        """Which windows' voices belong in the other order.

        Args:
            mix: (B, T).
            estimates: (B, S, T), of any level.
            visual: (B, S, F, D).
            used: (B, S), which voices have lips.
            order: (B,), log odds that the separator gave the order that the estimates are in.

        Returns:
            (B,), bool, on the CPU; False without lips, and in windows of less than a second.
        """
        num_frames = visual.shape[2]
        if num_frames < _LEAST_FRAMES or not used.any():
            return torch.zeros(len(mix), dtype=torch.bool)
        level = mix.square().mean(dim=1).sqrt().clamp_min(1e-8).to(self.device)
        voices = self._heard(estimates.to(self.device) * (_LEVEL / level)[:, None, None], num_frames)
        lips = visual.to(self.device).float().transpose(2, 3)  # (B, S, D, F)
        cost = _COST_OF_A_FRAME * torch.arange(-_REACH, _REACH + 1, device=self.device).abs()

        def agreement(mouth: int, voice: int) -> Tensor:
            return (overlap_agreement(lips[:, mouth], voices[:, voice], _REACH) - cost).amax(dim=1)

        own_less_other = torch.stack(
            [agreement(mouth, mouth) - agreement(mouth, 1 - mouth) for mouth in (0, 1)], dim=1
        )
        evidence = torch.where(used.to(self.device), own_less_other, 0.0).sum(dim=1)
        evidence = (evidence * (num_frames / _FITTED_FRAMES)).cpu()
        if order is not None:
            evidence = evidence + _WEIGHT_OF_LOG_ODDS * order.float().cpu()
        return evidence < 0

    def _heard(self, voices: Tensor, num_frames: int) -> Tensor:
        """Voices as the sound encoder hears them, held to the length of the lips. Shape: (B, S, T) -> (B, S, D, F)."""
        mel = self._mel(voices.flatten(0, 1))
        length = MEL_PER_FRAME * num_frames
        mel = functional.pad(mel, (0, max(0, length - mel.shape[-1])), mode="replicate")[..., :length]
        return self._sound(mel).unflatten(0, voices.shape[:2])


def open_order_check(
    separator: Separator,
    wanted: bool | None = None,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> OrderCheck | None:
    """The check that goes with a separator and its lip encoder.

    Args:
        separator: whose estimates are checked.
        wanted: None checks the separator that ships here alone, which the check was fitted to. One that was trained on
            the voices in hand knows their order better than an encoder that was not.
        weights: the lip encoder's file, as for `open_lips`.
        device: where the check runs.

    Returns:
        None where no check is wanted; where the lip encoder's file, or the file of its other half beside it, is not
        there (published lip readers have none); or where the embeddings are those of single frames, which the other
        half does not share.

    Raises:
        ValueError: `wanted` is something else.
        WeightsError: the file of the other half is damaged.
    """
    if wanted not in (None, True, False):
        raise ValueError(f"inferencer.check_order={wanted}: take true, false or null")
    trained_on = separator.front_end
    if trained_on is None or trained_on["features"] != "tcn":
        return None
    if not (_ships_here(separator.path) if wanted is None else wanted):
        return None
    for path in weights_candidates(trained_on, weights, separator.folders):
        if path.is_file() and file_digest(path) == trained_on["weights_sha256"]:
            sound = sound_of(path)
            if sound is not None:
                return OrderCheck(load_sound(sound, int(trained_on["dim"])), device)
    return None


def _ships_here(path: Path) -> bool:
    return SHIPPED.is_file() and file_digest(path) == file_digest(SHIPPED)
