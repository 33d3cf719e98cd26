"""Mouths with their own voices, out of a data directory.

Axes: F video frames, T samples at 16 kHz.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.audio_io import read_audio
from pipeline.layout import LayoutError, index_mixes
from pipeline.mouths import read_mouth
from pipeline.speakers import read_speakers


@dataclass(frozen=True)
class Clip:
    """A mouth and its voice.

    Attributes:
        id: as in the file names.
        speaker: who it is; the id where nothing is known.
        mouth: npz file.
        voice: a true voice out of some mixture.
    """

    id: str
    speaker: str
    mouth: Path
    voice: Path


def list_clips(root: str | Path, part: str | None, speakers: str | Path | None = None) -> list[Clip]:
    """All voices of a part that have a mouth, sorted by id.

    Args:
        root: data directory.
        part: `train`, `val`, `test`, or None for a directory without parts.
        speakers: CSV file with columns `id` and `speaker`, or None.

    Raises:
        ValueError: there are no such clips, or the table is absent or lacks a column or an id.
    """
    mixes, _ = index_mixes(root, part)
    clips = {}
    for mix in mixes:
        for name, mouth, voice in ((mix.id1, mix.mouth1, mix.s1), (mix.id2, mix.mouth2, mix.s2)):
            if mouth is not None and voice is not None and name not in clips:
                clips[name] = Clip(name, name, mouth, voice)
    if not clips:
        raise LayoutError(f"{root}: {part or 'audio'} holds no voice with a mouth; expected mouths/<id>.npz")
    names = {} if speakers is None else read_speakers(speakers, clips)
    return [replace(clips[name], speaker=names.get(name, name)) for name in sorted(clips)]


class ClipStore:
    """Reads clips, and keeps what was read while memory allows.

    Args:
        memory_gb: how much may be kept.
    """

    def __init__(self, memory_gb: float) -> None:
        self._free = memory_gb * 2**30
        self._kept: dict[str, tuple[np.ndarray, Tensor]] = {}

    def load(self, clip: Clip) -> tuple[np.ndarray, Tensor]:
        """Shape: frames (F, 88, 88) intensities in 0..255, voice (T,).

        Raises:
            ValueError: a file cannot be used.
        """
        if clip.id in self._kept:
            return self._kept[clip.id]
        frames, voice = read_mouth(clip.mouth), read_audio(clip.voice)
        self._free -= frames.nbytes + voice.nbytes
        if self._free > 0:
            self._kept[clip.id] = frames, voice
        return frames, voice
