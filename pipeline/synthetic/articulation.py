"""What a speaker's mouth does: one smooth trajectory, from which sound and pictures are both rendered.

Tracks run at 1 kHz; axis N is time in milliseconds.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

CONTROL_HZ = 1000


class Phone(NamedTuple):
    """Targets of one speech sound. Where ``spread`` is None the lips take the vowel's shape already."""

    hold_ms: int
    opening: (
        float  # jaw and lips, 0 shut .. 1 wide; below 0 is a virtual target that presses the lips together
    )
    spread: float | None  # -1 rounded .. +1 spread
    tongue: float  # -1 back .. +1 front
    voicing: float
    nasal: float = 0.0
    noise: float = 0.0
    noise_hz: float = 2500.0
    burst: float = 0.0  # noise level of the release, which lasts some 12 ms
    breath_ms: int = 0  # voiceless breath after the release


VOWELS = (
    Phone(0, 0.38, 0.9, 0.9, 1.0),  # i
    Phone(0, 0.50, 0.6, 0.6, 1.0),  # e
    Phone(0, 0.85, 0.4, 0.2, 1.0),  # ae
    Phone(0, 1.00, 0.1, -0.2, 1.0),  # a
    Phone(0, 0.62, -0.7, -0.6, 1.0),  # o
    Phone(0, 0.35, -1.0, -0.7, 1.0),  # u
    Phone(0, 0.50, 0.0, 0.0, 1.0),  # schwa
)
VOWEL_WEIGHTS = np.array([0.13, 0.16, 0.16, 0.24, 0.15, 0.08, 0.08])

CONSONANTS = (
    Phone(70, -0.45, None, 0.0, 1.0, nasal=0.9),  # m
    Phone(60, -0.45, None, 0.0, 0.6, burst=0.35, noise_hz=900.0),  # b
    Phone(80, -0.45, None, 0.0, 0.0, burst=0.5, noise_hz=900.0, breath_ms=30),  # p
    Phone(75, 0.02, 0.2, 0.0, 0.0, noise=0.22, noise_hz=4500.0),  # f
    Phone(50, 0.16, None, 0.5, 0.5, burst=0.4, noise_hz=3800.0),  # d
    Phone(65, 0.16, None, 0.5, 0.0, burst=0.6, noise_hz=3800.0, breath_ms=30),  # t
    Phone(65, 0.20, None, -0.3, 0.0, burst=0.6, noise_hz=1900.0, breath_ms=35),  # k
    Phone(85, 0.14, 0.5, 0.5, 0.0, noise=0.42, noise_hz=5600.0),  # s
    Phone(85, 0.16, -0.6, 0.3, 0.0, noise=0.42, noise_hz=3200.0),  # sh
    Phone(60, 0.12, -1.0, -0.8, 0.9),  # w
    Phone(55, 0.26, None, 0.3, 0.9),  # l
    Phone(60, 0.22, None, 0.4, 1.0, nasal=0.8),  # n
)
CONSONANT_WEIGHTS = np.array([0.15, 0.15, 0.13, 0.06, 0.07, 0.08, 0.08, 0.07, 0.05, 0.06, 0.05, 0.05])

# How fast each articulator moves: standard deviation of its smoothing in ms.
LIP_MS, TONGUE_MS, VALVE_MS, NOISE_MS, PITCH_MS = 20.0, 30.0, 12.0, 3.0, 45.0


@dataclass(frozen=True)
class Habits:
    """How one speaker paces speech."""

    syllable_s: float
    phrase_syllables: float
    pause_s: tuple[float, float]
    stress_db: float
    declination_st: float
    accent_st: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Habits":
        shortest = rng.uniform(0.14, 0.26)
        return cls(
            syllable_s=rng.uniform(0.17, 0.29),
            phrase_syllables=rng.uniform(1.6, 3.4),
            pause_s=(shortest, shortest + rng.uniform(0.10, 0.25)),
            stress_db=rng.uniform(2.0, 4.5),
            declination_st=rng.uniform(1.0, 4.0),
            accent_st=rng.uniform(1.0, 4.0),
        )


@dataclass(frozen=True)
class Articulation:
    """Control tracks of one utterance, each float64 (N,) at 1 kHz.

    ``opening`` 0..1 and ``spread`` -1..1 are what the camera sees; ``tongue`` is hidden. ``voicing``,
    ``breath`` and ``noise`` are source amplitudes, ``pitch_st`` is in semitones about the speaker's mean.
    """

    opening: np.ndarray
    spread: np.ndarray
    tongue: np.ndarray
    voicing: np.ndarray
    nasal: np.ndarray
    breath: np.ndarray
    noise: np.ndarray
    noise_hz: np.ndarray
    pitch_st: np.ndarray


def articulate(habits: Habits, rng: np.random.Generator, seconds: float) -> Articulation:
    """Draw ``seconds`` of babble: phrases of syllables with pauses between them.

    The result is cut from the middle of running babble, so that neither its start nor its end is special.
    """
    lead_ms = int(rng.integers(500, 2000))
    length_ms = round(seconds * CONTROL_HZ)
    durations: list[int] = []
    targets: list[tuple[float, ...]] = []
    elapsed_ms = 0
    while elapsed_ms < lead_ms + length_ms + 200:
        for duration_ms, target in _phrase(habits, rng):
            durations.append(duration_ms)
            targets.append(target)
            elapsed_ms += duration_ms
    tracks = np.repeat(np.array(targets), durations, axis=0)
    sigmas = (LIP_MS, LIP_MS, TONGUE_MS, VALVE_MS, VALVE_MS, VALVE_MS, NOISE_MS, TONGUE_MS, PITCH_MS)
    tracks = [
        gaussian_filter1d(track, sigma)[lead_ms : lead_ms + length_ms]
        for track, sigma in zip(tracks.T, sigmas)
    ]
    tracks[0] = np.clip(tracks[0], 0.0, 1.1)
    return Articulation(*tracks)


def _phrase(habits: Habits, rng: np.random.Generator) -> list[tuple[int, tuple[float, ...]]]:
    """Segments (duration in ms, targets in Articulation's order) of one phrase and the pause after it."""
    segments: list[tuple[int, tuple[float, ...]]] = []
    num_syllables = 1 + rng.poisson(habits.phrase_syllables - 1.0)
    final_st = rng.choice([-3.0, 2.5], p=[0.7, 0.3])
    for index in range(num_syllables):
        last = index == num_syllables - 1
        stressed = rng.random() < 0.5
        level = 10 ** ((0.0 if stressed else -habits.stress_db) / 20)
        pitch = habits.declination_st * (0.5 - index / max(1, num_syllables - 1))
        pitch += habits.accent_st * stressed + (final_st if last else 0.0)
        vowel = VOWELS[rng.choice(len(VOWELS), p=VOWEL_WEIGHTS)]
        opening = vowel.opening * (1.0 if stressed else 0.75) + rng.normal(0.0, 0.05)
        spread = vowel.spread + rng.normal(0.0, 0.1)
        syllable_ms = 1000 * habits.syllable_s * rng.uniform(0.75, 1.25) * (1.25 if last else 1.0)
        onset = CONSONANTS[rng.choice(len(CONSONANTS), p=CONSONANT_WEIGHTS)] if rng.random() < 0.9 else None
        if onset is not None:
            hold_ms = max(30, round(onset.hold_ms * rng.uniform(0.8, 1.2)))
            round_lips = spread if onset.spread is None else onset.spread
            lips = (onset.opening, round_lips, onset.tongue)
            valves = (level * onset.voicing, onset.nasal, 0.0)
            segments.append((hold_ms, (*lips, *valves, level * onset.noise, onset.noise_hz, pitch)))
            lips = (opening, spread, vowel.tongue)
            if onset.burst:
                segments.append((12, (*lips, 0.0, 0.0, 0.0, level * onset.burst, onset.noise_hz, pitch)))
            if onset.breath_ms:
                segments.append((onset.breath_ms, (*lips, 0.0, 0.0, level, 0.0, onset.noise_hz, pitch)))
            syllable_ms -= hold_ms
        noise_hz = 2500.0 if onset is None else onset.noise_hz
        vowel_ms = max(70, round(syllable_ms))
        # The second part of a vowel glides towards another one, relaxes and falls a little in pitch.
        glide = VOWELS[rng.choice(len(VOWELS), p=VOWEL_WEIGHTS)]
        share = rng.uniform(0.0, 0.5)
        end = (0.9 * opening, spread + share * (glide.spread - spread), (1 - share) * vowel.tongue)
        end = (*end, 0.7 * level, 0.0, 0.0, 0.0, noise_hz, pitch - 1.0)
        segments.append(
            (vowel_ms // 2, (opening, spread, vowel.tongue, level, 0.0, 0.0, 0.0, noise_hz, pitch))
        )
        segments.append((vowel_ms - vowel_ms // 2, end))
    pause_ms = round(1000 * rng.uniform(*habits.pause_s))
    # At rest the lips meet: the pause is seen as it is heard.
    segments.append((pause_ms, (-0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2500.0, 0.0)))
    return segments
