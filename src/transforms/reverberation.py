"""Rooms around single voices."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torchaudio.functional import fftconvolve

from pipeline.audio_io import SAMPLE_RATE_HZ, list_audio, read_audio
from pipeline.draw import chance, checked_probability, checked_range, integer

_ONSET_DB = -12.0  # how far below the highest peak the direct sound may lie
_ONSET_SAMPLES = 16  # 1 ms, within which the direct sound rises to its peak
_WALL_M = 0.5  # the least distance of mouth and microphone from a wall
# Reflections of higher order come late and weak, and their number grows with the cube of the order: a hard, small
# room would take seconds.
_HIGHEST_ORDER = 30


class Rooms(Protocol):
    """A supply of room impulse responses."""

    def __len__(self) -> int:
        """Number of responses."""

    def response(self, number: int) -> torch.Tensor:
        """Response ``number``, (N,) at 16 kHz, whose first sample is the peak of the direct sound."""


class RoomImpulseResponse:
    """Convolves a voice with a random room impulse response.

    The direct sound stays where it was, so lips and voice stay in step, and the length does not change. Responses are
    normalised to unit energy.

    Args:
        rooms: ``RecordedRooms`` or ``SimulatedRooms``.
        p: probability that a voice is changed.

    Raises:
        ValueError: ``p`` is no probability.
    """

    def __init__(self, rooms: Rooms, p: float = 0.5) -> None:
        self._rooms = rooms
        self._p = checked_probability("p", p)

    def __call__(self, voice: torch.Tensor) -> torch.Tensor:
        """Return the voice (T,) in a room, (T,)."""
        if not chance(self._p):
            return voice
        response = self._rooms.response(integer(len(self._rooms)))
        return fftconvolve(voice, response / response.norm())[: voice.numel()]


class RecordedRooms:
    """Room impulse responses from files.

    Args:
        folder: audio files of one response each, at any depth; channels are averaged.

    Raises:
        AudioError: there is no such folder, or no audio in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self._files = list_audio(folder)

    def __len__(self) -> int:
        return len(self._files)

    def response(self, number: int) -> torch.Tensor:
        """Read response ``number`` and cut what comes before its direct sound.

        Raises:
            ValueError: the file is silent.
        """
        response = read_audio(self._files[number])
        magnitude = response.abs()
        highest = magnitude.max()
        if highest == 0:
            raise ValueError(f"{self._files[number]}: silent, so no room impulse response; remove it")
        # A late reflection can be the highest peak of a distant voice: the direct sound is the first of note.
        onset = int(torch.nonzero(magnitude >= highest * 10 ** (_ONSET_DB / 20))[0])
        return response[onset + int(magnitude[onset : onset + _ONSET_SAMPLES].argmax()) :]


class SimulatedRooms:
    """Shoe-box rooms by the image-source method.

    Each room is simulated when it is first asked for and then kept; room ``n`` follows from ``(seed, n)`` alone, so
    all workers have the same rooms.

    Args:
        num_rooms: how many.
        rt60_s: shortest and longest reverberation time.
        distance_m: nearest and farthest mouth from the microphone.
        size_m: smallest and largest length and width; the height is 2.4 to 3.5 m.
        seed: another seed, other rooms.

    Raises:
        ValueError: an option has no possible value.

    Reference:
        Allen and Berkley, "Image method for efficiently simulating small-room acoustics", JASA 65(4), 1979;
        pyroomacoustics.
    """

    def __init__(
        self,
        num_rooms: int = 48,
        rt60_s: Sequence[float] = (0.15, 0.4),
        distance_m: Sequence[float] = (0.3, 2.0),
        size_m: Sequence[float] = (3.0, 8.0),
        seed: int = 0,
    ) -> None:
        if num_rooms <= 0:
            raise ValueError(f"num_rooms={num_rooms}: must be positive")
        self._num_rooms = num_rooms
        self._rt60_s = checked_range("rt60_s", rt60_s)
        self._distance_m = checked_range("distance_m", distance_m)
        self._size_m = checked_range("size_m", size_m)
        if self._rt60_s[0] <= 0 or self._distance_m[0] <= 0:
            raise ValueError(f"rt60_s={list(rt60_s)}, distance_m={list(distance_m)}: must be positive")
        if self._size_m[0] - 2 * _WALL_M < self._distance_m[0]:
            raise ValueError(
                f"distance_m={list(distance_m)} does not fit into size_m={list(size_m)} with {_WALL_M} m to the walls"
            )
        self._seed = seed
        self._kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self._num_rooms

    def response(self, number: int) -> torch.Tensor:
        """Simulate room ``number``, or return it as kept."""
        if number not in self._kept:
            self._kept[number] = self._simulate(number)
        return self._kept[number]

    def _simulate(self, number: int) -> torch.Tensor:
        import pyroomacoustics  # takes a second to import, and only simulation needs it

        rng = np.random.default_rng([self._seed, number])
        size = np.append(rng.uniform(*self._size_m, 2), rng.uniform(2.4, 3.5))
        mouth, microphone = self._positions(rng, size)
        absorption, order = _walls(rng.uniform(*self._rt60_s), tuple(size))
        room = pyroomacoustics.ShoeBox(
            size,
            fs=SAMPLE_RATE_HZ,
            materials=pyroomacoustics.Material(absorption),
            max_order=min(order, _HIGHEST_ORDER),
        )
        room.add_source(mouth)
        room.add_microphone(microphone)
        room.compute_rir()
        # The way of the direct sound, and the half length of the filters that place it between samples.
        direct = np.linalg.norm(mouth - microphone) / room.c * SAMPLE_RATE_HZ
        direct += pyroomacoustics.constants.get("frac_delay_length") // 2
        return torch.from_numpy(np.asarray(room.rir[0][0][round(direct) :], dtype=np.float32))

    def _positions(self, rng: np.random.Generator, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mouth and microphone, off the walls and at a distance within bounds."""
        low, high = np.full(3, _WALL_M), size - _WALL_M
        while True:
            microphone = rng.uniform(low, high)
            direction = rng.standard_normal(3)
            mouth = microphone + direction / np.linalg.norm(direction) * rng.uniform(*self._distance_m)
            if ((low <= mouth) & (mouth <= high)).all():
                return mouth, microphone


@lru_cache(maxsize=1)
def _walls(rt60_s: float, size: tuple[float, ...]) -> tuple[float, int]:
    """Energy absorption of the walls that gives a reverberation time, and the order of reflection that fills it."""
    import pyroomacoustics

    try:
        return pyroomacoustics.inverse_sabine(rt60_s, size)
    except ValueError:
        # Too short a time for so large a room: walls that swallow nearly all come nearest to it.
        return 0.99, 3
