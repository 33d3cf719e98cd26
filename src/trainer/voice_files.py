"""Audio files on both sides of inference: mixtures read stretch by stretch, two voices written as one grows.

Axes: S = 2 voices, n samples of a stretch, all at the rate of the mixture's file.
"""

import os
from pathlib import Path

import numpy as np
import soundfile

from pipeline.audio_io import AudioInfo, read_audio

OUTPUT_FORMATS = ("auto", "wav", "flac")
VOICES = ("s1", "s2")
_BLOCK_S = 60
_INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_SUBTYPES = {
    "WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"),
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "MP3": ("MPEG_LAYER_III",),
}
_WAV_LIMIT_BYTES = 2**32 - 2**16


class WindowReader:
    """Stretches of an audio file, mono at its own rate; holds about a minute of it.

    Stretches must start where the last one started or later.
    """

    def __init__(self, path: str | Path, info: AudioInfo) -> None:
        self._path, self._info = path, info
        self._held = np.zeros(0, np.float32)
        self._start = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop`. Shape: (stop - start,).

        Raises:
            AudioError: the file is damaged there.
        """
        self._held, self._start = self._held[start - self._start :], start
        end = start + len(self._held)
        if stop > end:
            wanted = min(max(stop - end, _BLOCK_S * self._info.rate_hz), self._info.num_samples - end)
            block = read_audio(self._path, self._info.rate_hz, start=end, num_samples=wanted)
            self._held = np.concatenate([self._held, block.numpy()])
        return self._held[: stop - start]


def output_name(mix_path: str | Path, output_format: str) -> str:
    """File name of a voice: that of its mixture, with another extension where another format is asked for."""
    path = Path(mix_path)
    return path.name if output_format == "auto" else f"{path.stem}.{output_format}"


def voice_files(folder: Path, mix_path: str | Path, output_format: str) -> list[Path]:
    """Where the voices of a mixture are written, `s1` first."""
    return [folder / voice / output_name(mix_path, output_format) for voice in VOICES]


def _subtype(container: str, given: str) -> str:
    """The sample format of the mixture, or what keeps most of it where the container does not have it."""
    if given in _SUBTYPES[container]:
        return given
    if container == "MP3":
        return "MPEG_LAYER_III"
    return "PCM_24" if container == "FLAC" and given in ("PCM_32", "FLOAT", "DOUBLE") else "PCM_16"


class VoiceWriter:
    """Writes the two voices of a mixture, stretch by stretch, to files that appear whole or not at all.

    Rate and sample format are those of the mixture. In integer formats the second voice is the mixture minus the
    first, after rounding, so that they sum to it exactly unless a voice exceeds full scale. Formats that cannot
    be written or lose precision (mu-law, ADPCM) become PCM-16; mp3 stays lossy.

    Args:
        folder: gets `s1/` and `s2/`.
        mix_path: the mixture.
        info: its header.
        output_format: `auto` (as the mixture), `wav` or `flac`.
    """

    def __init__(self, folder: Path, mix_path: str | Path, info: AudioInfo, output_format: str) -> None:
        name = output_name(mix_path, output_format)
        container = Path(name).suffix[1:].upper()
        subtype = _subtype(container, info.subtype)
        self._bits = _INTEGER_BITS.get(subtype)
        self._wide = subtype == "DOUBLE"
        self.clipped_samples = 0
        if container == "WAV" and info.num_samples * 8 > _WAV_LIMIT_BYTES:
            container = "RF64"
        self._final = voice_files(folder, mix_path, output_format)
        self._temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in self._final]
        self._files: list[soundfile.SoundFile] = []
        try:
            for path in self._temporary:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.append(
                    soundfile.SoundFile(
                        path, "w", samplerate=info.rate_hz, channels=1, format=container, subtype=subtype
                    )
                )
        except BaseException:
            self.discard()
            raise

    def write(self, mix: np.ndarray, voices: np.ndarray) -> None:
        """Append a stretch. Shape: mix (n,), voices (S, n), summing to the mixture."""
        for file, samples in zip(self._files, self._encode(mix, voices[0])):
            file.write(samples)

    def _encode(self, mix: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._bits is None:
            kind = np.float64 if self._wide else np.float32
            return first.astype(kind), mix.astype(kind) - first.astype(kind)
        full_scale = 2 ** (self._bits - 1)
        rounded = np.rint(first.astype(np.float64) * full_scale)
        one = rounded.clip(-full_scale, full_scale - 1)
        rest = np.rint(mix.astype(np.float64) * full_scale) - one
        other = rest.clip(-full_scale, full_scale - 1)
        self.clipped_samples += int(np.count_nonzero((one != rounded) | (other != rest)))
        # libsndfile takes the upper bits of what it is given.
        shift = 2 ** (32 - self._bits)
        return (one * shift).astype(np.int32), (other * shift).astype(np.int32)

    def finish(self) -> list[Path]:
        """Close the files and give them their names."""
        for file in self._files:
            file.close()
        for temporary, final in zip(self._temporary, self._final):
            os.replace(temporary, final)
        return self._final

    def discard(self) -> None:
        """Close the files and remove them."""
        for file in self._files:
            file.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)
