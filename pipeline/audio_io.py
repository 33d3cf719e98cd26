"""Reading audio files of any usual format and rate into mono float32 at the rate of the separator.

Axes: T samples at ``rate_hz``. Files are decoded block by block, mixed down and resampled on the way, so that
an hour of stereo at 48 kHz costs little more memory than its mono result.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

SAMPLE_RATE_HZ = 16_000

_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
_BLOCK_S = 20  # long enough that the calls cost nothing, small beside a long recording
_UNKNOWN_LENGTH = 2**48  # libsndfile tells 2**63 - 1 samples where a streamed file's header tells none
# How far the resampling kernel reaches in zero crossings, and its cut-off: torchaudio's defaults, spelt out
# because the context that blocks carry follows from them.
_LOWPASS_WIDTH = 6
_ROLLOFF = 0.99


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file, the reason and what to do."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        rate_hz: sample rate of the file itself.
        num_samples: samples per channel at that rate.
        num_channels: channels in the file.
        subtype: sample format as soundfile names it, ``PCM_16`` or ``FLOAT`` for instance.
        format: container as soundfile names it, ``WAV``, ``FLAC`` or ``MP3`` for instance.
    """

    rate_hz: int
    num_samples: int
    num_channels: int
    subtype: str
    format: str


def audio_info(path: str | Path) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        AudioError: the file is absent or is not audio that soundfile can read.
    """
    with _open(path) as stream:
        return AudioInfo(
            rate_hz=stream.samplerate,
            num_samples=stream.frames,
            num_channels=stream.channels,
            subtype=stream.subtype,
            format=stream.format,
        )


def list_audio(folder: str | Path) -> list[Path]:
    """All audio files under a folder at any depth, sorted by path, without hidden ones, as archives of a Mac hold.

    Raises:
        AudioError: there is no such folder, or no audio file in it.
    """
    if not Path(folder).is_dir():
        raise AudioError(f"{folder}: no such folder of audio files; check the path")
    files = sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise AudioError(f"{folder}: no audio file in it; expected files that end in {', '.join(_SUFFIXES)}")
    return files


def read_audio(
    path: str | Path, rate_hz: int = SAMPLE_RATE_HZ, start: int = 0, num_samples: int | None = None
) -> torch.Tensor:
    """Read an audio file, or a piece of it, as mono float32.

    Several channels are averaged, with a warning that names the file; another rate is resampled by windowed
    sinc interpolation. Nothing is rescaled: full scale of integer formats is 1.0, float formats keep their
    values.

    Args:
        path: wav, flac, mp3 or whatever else soundfile decodes.
        rate_hz: the rate wanted.
        start: first sample wanted, counted at ``rate_hz``.
        num_samples: how many are wanted; fewer come back where the file ends before. None: all to the end.

    Shape:
        returns (T,) with T = ceil(samples of the file * rate_hz / rate of the file) for a whole file.

    Raises:
        AudioError: the file is absent, is not audio, breaks off while decoded, holds no samples or holds NaN
            or infinite samples; or it ends before ``start``.
    """
    with _open(path) as stream:
        if stream.channels > 1:
            warnings.warn(f"{path}: {stream.channels} channels, averaged to one", stacklevel=2)
        first, count = _span(stream, rate_hz, start, num_samples)
        if count <= 0:
            reason = "no samples in it" if start == 0 else f"it ends before sample {start} at {rate_hz} Hz"
            raise AudioError(f"{path}: {reason}; remove it or export it again")
        expected = -(-count * rate_hz // stream.samplerate)
        blocks = _mono_blocks(stream, path, first, count)
        audio = _collect(_resampled(blocks, stream.samplerate, rate_hz), expected)
    return audio if num_samples is None else audio[:num_samples]


def _open(path: str | Path) -> soundfile.SoundFile:
    if not Path(path).is_file():
        raise AudioError(f"{path}: no such audio file; check the path")
    try:
        stream = soundfile.SoundFile(str(path))
    except UnicodeEncodeError as error:
        raise AudioError(f"{path}: its name is not UTF-8; rename it") from error
    except (soundfile.LibsndfileError, TypeError) as error:
        # TypeError: soundfile takes a name that ends in .raw for headerless samples and asks for more
        raise AudioError(
            f"{path}: not readable as audio ({error}); export it again as wav, flac or mp3"
        ) from error
    if stream.frames > _UNKNOWN_LENGTH:
        stream.close()
        raise AudioError(f"{path}: its header tells no length, as of a stream; export it again to a file")
    return stream


def _span(stream: soundfile.SoundFile, rate_hz: int, start: int, num_samples: int | None) -> tuple[int, int]:
    """First sample and number of samples to decode, counted at the file's own rate."""
    first = round(start * stream.samplerate / rate_hz)
    count = stream.frames - first
    if num_samples is not None:
        count = min(count, -(-num_samples * stream.samplerate // rate_hz))
    return first, count


def _mono_blocks(
    stream: soundfile.SoundFile, path: str | Path, first: int, count: int
) -> Iterator[torch.Tensor]:
    """Decode ``count`` samples from ``first`` on in blocks and average the channels: yields (n,) float32."""
    position, end = first, first + count
    try:
        if first > 0:
            stream.seek(first)
        while position < end:
            wanted = min(_BLOCK_S * stream.samplerate, end - position)
            frames = stream.read(wanted, dtype="float32", always_2d=True)  # (n, channels)
            if len(frames) == 0:
                raise AudioError(
                    f"{path}: ends at {position / stream.samplerate:.2f} s although its header promises "
                    f"{stream.frames / stream.samplerate:.2f} s; the file is damaged, export it again"
                )
            mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)
            if not np.isfinite(mono).all():
                bad = position + int(np.flatnonzero(~np.isfinite(mono))[0])
                raise AudioError(
                    f"{path}: NaN or infinite samples, the first at {bad / stream.samplerate:.4f} s; "
                    "repair or remove the file"
                )
            position += len(mono)
            yield torch.from_numpy(np.ascontiguousarray(mono))
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: decoding breaks off after {position / stream.samplerate:.2f} s ({error}); the file is "
            "damaged, export it again"
        ) from error


def _resampled(blocks: Iterator[torch.Tensor], from_hz: int, to_hz: int) -> Iterator[torch.Tensor]:
    """Resample a stream of blocks so that the parts together are what resampling the whole would give.

    With rates reduced to p -> q, q outputs come from every p inputs with a kernel that depends on the phase
    only. Blocks that start at a multiple of p and carry the kernel's reach on both sides therefore meet
    without a seam.
    """
    if from_hz == to_hz:
        yield from blocks
        return
    divisor = gcd(from_hz, to_hz)
    p, q = from_hz // divisor, to_hz // divisor
    reach = int(np.ceil(_LOWPASS_WIDTH * p / (min(p, q) * _ROLLOFF)))
    context = -(-reach // p) + 1  # in units of p inputs

    def convert(part: torch.Tensor) -> torch.Tensor:
        return resample(part, p, q, lowpass_filter_width=_LOWPASS_WIDTH, rolloff=_ROLLOFF)

    held = torch.empty(0)  # inputs not yet fully used, with `left` units of past context in front
    left = 0
    for block in blocks:
        held = torch.cat([held, block])
        units = held.numel() // p
        ready = units - context  # the last units still miss their right context
        if ready <= left:
            continue
        yield convert(held[: units * p])[left * q : ready * q]
        keep = max(0, ready - context)
        held, left = held[keep * p :], ready - keep
    if held.numel() > 0:
        yield convert(held)[left * q :]


def _collect(parts: Iterator[torch.Tensor], expected: int) -> torch.Tensor:
    """Gather the parts in one tensor that is allocated once."""
    gathered = torch.empty(expected)
    filled = 0
    for part in parts:
        gathered[filled : filled + part.numel()] = part
        filled += part.numel()
    assert filled == expected, f"{filled} samples after resampling, expected {expected}"
    return gathered
