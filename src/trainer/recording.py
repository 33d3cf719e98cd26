"""One recording on its way: read in windows, separated elsewhere, joined and written as estimates come back.

Axes: S = 2 voices, T samples at 16 kHz, n samples at the rate of the file, F video frames, D lip embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.functional import resample

from pipeline.audio_io import SAMPLE_RATE_HZ, AudioInfo
from pipeline.mouths import FRAME_RATE_HZ
from src.trainer.mixture_consistency import share_residual
from src.trainer.voice_files import VoiceWriter, WindowReader
from src.trainer.windowing import Joiner, frame_to_sample

SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FRAME_RATE_HZ


class Recording:
    """A mixture between its file and the files of its voices.

    Args:
        record: entry of a dataset's index.
        info: header of the mixture.
        plan: windows in video frames.

    Attributes:
        by_lips: whether lips fixed the order of its voices in any window.
        failed: set once it cannot be completed; its remaining windows are dropped.
        seconds: duration.
    """

    def __init__(self, record: Mapping[str, Any], info: AudioInfo, plan: list[tuple[int, int]]) -> None:
        self.record, self.info, self.plan = record, info, plan
        self.seconds = info.num_samples / info.rate_hz
        self.by_lips = self.failed = False
        self._samples = [
            (frame_to_sample(start, info.rate_hz), min(frame_to_sample(stop, info.rate_hz), info.num_samples))
            for start, stop in plan
        ]
        self._reader = WindowReader(record["mix"], info)
        self._joiner = Joiner()
        self._num_joined = 0
        self._unwritten = np.zeros(0, np.float32)  # the mixture from the first sample that is not final
        self._writer: VoiceWriter | None = None

    @property
    def name(self) -> str:
        """File of the mixture."""
        return self.record["mix"]

    @property
    def clipped_samples(self) -> int:
        """Samples of the voices that exceeded full scale."""
        return 0 if self._writer is None else self._writer.clipped_samples

    def read(self, number: int) -> Tensor:
        """Mixture of a window at 16 kHz; where there are several, all have the same length. Shape: (T,).

        Raises:
            AudioError: the file is damaged there.
        """
        start, stop = self._samples[number]
        mix = self._reader.read(start, stop)
        known = self._samples[number - 1][1] if number else 0
        self._unwritten = np.concatenate([self._unwritten, mix[known - start :]])
        window = resample(torch.from_numpy(mix), self.info.rate_hz, SAMPLE_RATE_HZ)
        if len(self.plan) == 1:
            return window
        first, last = self.plan[number]
        length = (last - first) * SAMPLES_PER_FRAME
        return functional.pad(window, (0, max(0, length - len(window))))[:length]

    def accept(
        self, estimates: Tensor, folder: Path, output_format: str, *, ordered: bool
    ) -> list[Path] | None:
        """Take the estimates of the next window and write what is final.

        Args:
            estimates: (S, T), of the window read.
            folder: gets `s1/` and `s2/`.
            output_format: see `VoiceWriter`.
            ordered: whether lips fixed the order of the voices in this window.

        Returns:
            The two files once the recording is complete.

        Raises:
            OSError, soundfile.SoundFileError: the files cannot be written.
        """
        start, stop = self._samples[self._num_joined]
        self._num_joined += 1
        complete = self._num_joined == len(self.plan)
        next_start = None if complete else self._samples[self._num_joined][0]
        voices = resample(estimates, SAMPLE_RATE_HZ, self.info.rate_hz)[:, : stop - start].numpy()
        voices = self._joiner.add(start, voices, next_start, ordered=ordered)
        mix, self._unwritten = np.split(self._unwritten, [voices.shape[1]])
        if self._writer is None:
            self._writer = VoiceWriter(folder, self.name, self.info, output_format)
        self._writer.write(mix, share_residual(mix, voices))
        return self._writer.finish() if complete else None

    def discard(self) -> None:
        """Give up: remove what was written so far, and drop the windows to come."""
        self.failed = True
        if self._writer is not None:
            self._writer.discard()


@dataclass(frozen=True)
class Window:
    """A window of a recording: mix (T,), visual (S, F, D) (None for an audio-only separator), visual_mask (S,)."""

    recording: Recording
    mix: Tensor
    visual: np.ndarray | None
    visual_mask: np.ndarray


def collate_windows(windows: list[Window]) -> dict[str, Any]:
    """Windows of equal length as a batch in the project's vocabulary."""
    batch: dict[str, Any] = {
        "mix": torch.stack([window.mix for window in windows]),
        "visual_mask": torch.from_numpy(np.stack([window.visual_mask for window in windows])),
        "lengths": torch.tensor([len(window.mix) for window in windows]),
        "utt_id": [window.recording.record["utt_id"] for window in windows],
    }
    if windows[0].visual is not None:
        batch["visual"] = torch.from_numpy(np.stack([window.visual for window in windows]))
    return batch
