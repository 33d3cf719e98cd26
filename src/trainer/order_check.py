"""A second look at which of two separated voices moves with whose lips, moment by moment.

A separator decides on the order of the voices before they are apart. Once they are, a sound encoder that was trained
with the lip encoder, on voices alone (`pipeline.synchrony`), can hear each of them: where it contradicts the
separator, the voices are exchanged, for all of a window or for a while. In doubt each gets its share of both, which is
their mean given what was seen and heard.

Axes: B windows, S = 2 voices, T samples at 16 kHz, F video frames, D lip embedding, L lags.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.interpolation import between_frames
from pipeline.lipreading.weights import file_digest
from pipeline.synchrony.agreement import frame_agreement, overlap_agreement
from pipeline.synchrony.halves import load_sound, sound_of
from pipeline.synchrony.sound import MEL_PER_FRAME, LogMel, SoundEncoder
from src.datasets.lips import FRAME_SAMPLES
from src.trainer.lip_source import weights_candidates
from src.trainer.separator import SHIPPED, Separator

# Chosen on mixtures of validation faces, see weights/README.md.
_REACH = 2  # frames that lips may be out of step with the voice
_COST_OF_A_FRAME = 0.03  # of such a lag, in agreement
_LOG_ODDS_OF_AGREEMENT = 20.0  # of one order, for each unit that it agrees better by, over two seconds
_WEIGHT_OF_LOG_ODDS = 2.0  # of the separator
_CHANGES = 0.01  # probability that voices leave their order, or come back to it, from a frame to the next
_FITTED_FRAMES = 50
_LEAST_FRAMES = 25  # a second: less says too little
_LEVEL = 0.17  # RMS of a mixture whose voices are as loud as those that the encoder was trained on


class OrderCheck:
    """Tells where the voices of a window contradict the lips.

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
        """How likely the voices belong in the other order, at every video frame.

        Args:
            mix: (B, T).
            estimates: (B, S, T), of any level.
            visual: (B, S, F, D).
            used: (B, S), which voices have lips.
            order: (B,), log odds that the separator gives the order that the estimates are in.

        Returns:
            (B, F), 0 to 1, on the CPU; 0 without lips, and in windows of less than a second.
        """
        num_frames = visual.shape[2]
        if num_frames < _LEAST_FRAMES or not used.any():
            return torch.zeros(len(mix), num_frames)
        level = mix.square().mean(dim=1).sqrt().clamp_min(1e-8).to(self.device)
        voices = self._heard(estimates.to(self.device) * (_LEVEL / level)[:, None, None], num_frames)
        lips = visual.to(self.device).float().transpose(2, 3)  # (B, S, D, F)
        evidence = sum(
            torch.where(
                used[:, mouth, None].to(self.device), _own_less_other(lips[:, mouth], voices, mouth), 0.0
            )
            for mouth in (0, 1)
        )
        odds = _LOG_ODDS_OF_AGREEMENT * num_frames / _FITTED_FRAMES * evidence.cpu()
        if order is not None:
            odds = odds + _WEIGHT_OF_LOG_ODDS * order.float().cpu()[:, None] / num_frames
        exchanged = (-smoothed(odds, _CHANGES)).sigmoid()
        return torch.where(used.any(dim=1, keepdim=True).cpu(), exchanged, 0.0)

    def _heard(self, voices: Tensor, num_frames: int) -> Tensor:
        """Voices as the sound encoder hears them, held to the length of the lips. Shape: (B, S, T) -> (B, S, D, F)."""
        mel = self._mel(voices.flatten(0, 1))
        length = MEL_PER_FRAME * num_frames
        mel = functional.pad(mel, (0, max(0, length - mel.shape[-1])), mode="replicate")[..., :length]
        return self._sound(mel).unflatten(0, voices.shape[:2])


def put_in_order(estimates: Tensor, exchanged: Tensor) -> Tensor:
    """Estimates of which each gets the share of the other that `OrderCheck.exchanged` found.

    Shape: estimates (B, S, T), exchanged (B, F) -> (B, S, T).
    """
    num_samples = estimates.shape[-1]
    centres = (torch.arange(num_samples) + 0.5) / FRAME_SAMPLES - 0.5
    share = between_frames(exchanged, centres, dim=1)[:, None].to(estimates.dtype)
    return torch.lerp(estimates, estimates.flip(1), share)


def smoothed(odds: Tensor, changes: float) -> Tensor:
    """Log odds of a state at every frame, of two that change places with a probability from each frame to the next.

    The forward-backward algorithm for two states (Rabiner, "A Tutorial on Hidden Markov Models", 1989, sec. III), in
    log odds.

    Shape: (B, F) log odds that every frame by itself speaks for -> (B, F).
    """
    stays, leaves = (torch.tensor(p, dtype=odds.dtype).log() for p in (1 - changes, changes))

    def next_frame(state: Tensor) -> Tensor:
        return torch.logaddexp(stays + state, leaves) - torch.logaddexp(leaves + state, stays)

    forward, backward = [odds[:, 0]], [torch.zeros_like(odds[:, 0])]
    for frame in range(1, odds.shape[1]):
        forward.append(odds[:, frame] + next_frame(forward[-1]))
        backward.append(next_frame(backward[-1] + odds[:, -frame]))
    return torch.stack(forward, dim=1) + torch.stack(backward[::-1], dim=1)


def _own_less_other(lips: Tensor, voices: Tensor, own: int) -> Tensor:
    """What every frame adds to the agreement of lips with their own voice less that with the other, at the best lag.

    Shape: lips (B, D, F), voices (B, S, D, F) -> (B, F), whose sum lies in -2..2.
    """
    lags = torch.arange(-_REACH, _REACH + 1, device=lips.device)
    agreements = torch.stack(
        [overlap_agreement(lips, voices[:, voice], _REACH) for voice in (0, 1)]
    )  # (S, B, L)
    best = lags[(agreements - _COST_OF_A_FRAME * lags.abs()).amax(dim=0).argmax(dim=1)]
    num_frames = lips.shape[-1]
    places = (torch.arange(num_frames, device=lips.device) + best[:, None]).clamp(0, num_frames - 1)
    in_step = voices.gather(-1, places[:, None, None].expand_as(voices))
    return frame_agreement(lips, in_step[:, own]) - frame_agreement(lips, in_step[:, 1 - own])


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
