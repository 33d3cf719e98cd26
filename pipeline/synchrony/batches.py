"""Batches of clips for training: who is in it, which stretch, how fast, how disguised.

Axes: B clips, F video frames, N = 4 F mel frames, M mel bands, H rows, W columns.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipeline.draw import drawn_from, uniform
from pipeline.interpolation import between_frames
from pipeline.mouths import MEAN, STD
from pipeline.synchrony.augment import MouthAugment, SoundAugment
from pipeline.synchrony.clips import Clip, ClipStore
from pipeline.synchrony.shots import shots
from pipeline.synchrony.sound import MEL_PER_FRAME, LogMel


class BatchMaker:
    """Draws batches; batch `i` follows from `(seed, i)` alone, so that a resumed run goes on as if never stopped.

    Several clips of each speaker make negatives of the same face, which cannot be told apart by the face. No stretch
    goes over a cut (`shots`).

    Args:
        clips: to draw from.
        store: reads them.
        speakers: in a batch.
        clips_per_speaker: in a batch.
        frames: shortest and longest stretch; all clips of a batch have the same. A clip without a shot that is long
            enough, at the slowest speed, is left out of the batch.
        speed: slowest and fastest playing, of lips and voice together.
        mouth_augment, sound_augment: None leaves them as they are.
        seed: of all draws.

    Raises:
        ValueError: the clips are of fewer than two speakers; later, of fewer that have a shot of such a length.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        store: ClipStore,
        *,
        speakers: int,
        clips_per_speaker: int,
        frames: Sequence[int],
        speed: Sequence[float],
        mouth_augment: MouthAugment | None = None,
        sound_augment: SoundAugment | None = None,
        seed: int = 0,
    ) -> None:
        by_speaker: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            by_speaker[clip.speaker].append(clip)
        self._by_speaker = list(by_speaker.values())
        if len(self._by_speaker) < 2:
            raise ValueError(f"{len(clips)} clips of one speaker: matching needs clips of two at least")
        self._store, self._frames, self._speed = store, tuple(frames), tuple(speed)
        self._speakers, self._clips_per_speaker, self._seed = speakers, clips_per_speaker, seed
        self._mouth_augment, self._sound_augment = mouth_augment, sound_augment
        self._mel, self._shots = LogMel(), dict[str, list[range]]()

    def make(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch of that number. Shape: pictures (B, 1, F, H, W) as the network takes them, mel (B, M, N)."""
        with drawn_from(self._seed * 1_000_003 + number):
            num_frames = round(uniform(*self._frames))
            drawn = [
                self._stretch(*self._store.load(clip), shot, num_frames)
                for clip, shot in self._draw(num_frames)
            ]
            mouths, mels = (list(part) for part in zip(*drawn))
            if self._mouth_augment is not None:
                others = [mouths[i] for i in torch.randperm(len(mouths)).tolist()]
                mouths = [self._mouth_augment(mouth, other) for mouth, other in zip(mouths, others)]
            if self._sound_augment is not None:
                others = [mels[i] for i in torch.randperm(len(mels)).tolist()]
                mels = [self._sound_augment(mel, other) for mel, other in zip(mels, others)]
        return network_input(torch.stack(mouths)), torch.stack(mels)

    def _draw(self, num_frames: int) -> list[tuple[Clip, range]]:
        drawn: list[tuple[Clip, range]] = []
        for speaker in torch.randperm(len(self._by_speaker))[: self._speakers].tolist():
            clips = self._by_speaker[speaker]
            order = (clips[i] for i in torch.randperm(len(clips)).tolist())
            long_enough = (
                (clip, shot) for clip in order if (shot := self._shot(clip, num_frames)) is not None
            )
            drawn += islice(long_enough, self._clips_per_speaker)
        if len({clip.speaker for clip, _ in drawn}) < 2:
            raise ValueError(
                f"hardly any clip has {num_frames} frames without a cut: lower batches.frames ({self._frames})"
            )
        return drawn

    def _shot(self, clip: Clip, num_frames: int) -> range | None:
        if clip.id not in self._shots:
            self._shots[clip.id] = shots(self._store.load(clip)[0])
        fitting = [shot for shot in self._shots[clip.id] if len(shot) >= num_frames * self._speed[0]]
        return fitting[int(uniform(0, len(fitting)))] if fitting else None

    def _stretch(
        self, frames: np.ndarray, voice: Tensor, shot: range, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        speed = min(uniform(*self._speed), len(shot) / num_frames)
        start = uniform(0, len(shot) - speed * num_frames)
        mel = self._mel(voice)[:, shot.start * MEL_PER_FRAME : shot.stop * MEL_PER_FRAME + 1]
        return stretch(torch.from_numpy(frames[shot.start : shot.stop]), mel, num_frames, start, speed)


def stretch(
    frames: Tensor, mel: Tensor, num_frames: int, start: float = 0.0, speed: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A stretch of a clip at a speed, lips and voice in step, interpolated linearly; held beyond the ends.

    Args:
        frames: (F_all, H, W).
        mel: (M, N_all), 100 per second, the first centred at 0 s.
        num_frames: F of the result.
        start: first video frame, with fractions.
        speed: frames of the clip in a frame of the result.

    Returns:
        frames float32 (F, H, W), mel (M, 4 F).
    """
    # In video frames: frame k covers k to k + 1, mel frame m is centred at m / 4.
    at = start + speed * (torch.arange(num_frames) + 0.5)
    at_mel = start + speed * (torch.arange(num_frames * MEL_PER_FRAME) + 0.5) / MEL_PER_FRAME
    return between_frames(frames, at - 0.5), between_frames(mel, at_mel * MEL_PER_FRAME, dim=1)


def network_input(mouths: Tensor) -> Tensor:
    """Shape: intensities 0..255 (B, F, H, W) -> normalised (B, 1, F, H, W)."""
    return ((mouths / 255 - MEAN) / STD)[:, None]
