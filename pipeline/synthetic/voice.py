"""Formant synthesis of an articulation.

A pulse train and noise pass through a vocal tract whose resonances follow the mouth. The time-varying filter
is applied to overlapping windows in the frequency domain: far quicker than a recursion over samples in NumPy.
Axes: T samples at 16 kHz, N control samples at 1 kHz, K windows, Q frequency bins.

Reference: D. H. Klatt, "Software for a cascade/parallel formant synthesizer", JASA 67(3), 1980: resonators in
cascade, eq. 2.
"""

from dataclasses import dataclass

import numpy as np
from scipy.signal import get_window

from pipeline.synthetic.articulation import CONTROL_HZ, Articulation

SAMPLE_RATE_HZ = 16000
HOP, WINDOW, FFT_SIZE = 80, 320, 1024
CHUNK_WINDOWS = 64  # what fits the processor's cache, and bounds the memory of long utterances
BANDWIDTHS_HZ = (70.0, 100.0, 150.0, 220.0, 300.0, 450.0)
FLOOR_DB = -50.0  # recording noise below the voice


@dataclass(frozen=True)
class Voice:
    """What makes one speaker's sound: pitch in Hz, vocal tract scale, spectral slope and roughness."""

    pitch_hz: float
    formant_scale: float
    slope_hz: float  # corner of the glottal low-pass
    f4_hz: float
    jitter: float
    shimmer: float
    breathiness: float
    floor_db: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Voice":
        pitch_hz = float(np.exp(rng.uniform(np.log(80.0), np.log(260.0))))
        # Higher voices tend to have shorter tracts; the scatter keeps pitch and timbre separate cues.
        scale = (pitch_hz / 144.0) ** 0.2 * np.exp(rng.normal(0.0, 0.05))
        return cls(
            pitch_hz=pitch_hz,
            formant_scale=float(np.clip(scale, 0.82, 1.25)),
            slope_hz=rng.uniform(250.0, 1000.0),
            f4_hz=rng.uniform(3300.0, 3900.0),
            jitter=rng.uniform(0.002, 0.012),
            shimmer=rng.uniform(0.02, 0.10),
            breathiness=rng.uniform(0.01, 0.08),
            floor_db=FLOOR_DB + rng.uniform(-5.0, 5.0),
        )


def synthesise(voice: Voice, motion: Articulation, rng: np.random.Generator) -> np.ndarray:
    """Speak an articulation.

    Shape:
        float32 (T,) with T = 16 N, RMS 0.1.
    """
    length = len(motion.opening) * SAMPLE_RATE_HZ // CONTROL_HZ
    radiated = _radiation(motion)
    pulses = _pulse_train(voice, motion, radiated, rng, length)
    noise = rng.standard_normal(length)
    breath = (motion.breath * 0.12 + motion.voicing * voice.breathiness) * (0.3 + 0.7 * radiated)
    throat = pulses + noise * _to_audio_rate(breath, length)
    hiss = noise * _to_audio_rate(motion.noise * 0.3, length)
    wave = _filter(voice, motion, throat, hiss)
    wave /= np.sqrt(np.mean(wave**2)) + 1e-9
    wave += 10 ** (voice.floor_db / 20) * rng.standard_normal(length)
    return (0.1 * wave).astype(np.float32)


def _radiation(motion: Articulation) -> np.ndarray:
    """Amplitude (N,) that leaves the face: louder through a wider mouth, and some through the nose."""
    return np.maximum(0.04 + 0.96 * np.minimum(motion.opening, 1.0) ** 0.6, 0.3 * motion.nasal)


def _pulse_train(
    voice: Voice, motion: Articulation, radiated: np.ndarray, rng: np.random.Generator, length: int
) -> np.ndarray:
    """Glottal pulses (T,) with jitter and shimmer, each split over two samples as its time lies between."""
    knots = np.arange(0, length + 1600, 1600)
    wander = np.interp(np.arange(length), knots, rng.normal(0, 0.15, len(knots)))
    semitones = _to_audio_rate(motion.pitch_st, length) + wander
    pitch_hz = np.clip(voice.pitch_hz * 2 ** (semitones / 12), 60.0, 400.0)
    phase = np.cumsum(pitch_hz / SAMPLE_RATE_HZ) + rng.random()
    before = np.flatnonzero(np.diff(np.floor(phase)))
    position = before + (np.ceil(phase[before]) - phase[before]) * SAMPLE_RATE_HZ / pitch_hz[before]
    position += rng.normal(0.0, voice.jitter, len(before)) * SAMPLE_RATE_HZ / pitch_hz[before]
    position = np.clip(position, 0, length - 2)
    amplitude = _to_audio_rate(motion.voicing * radiated, length)[before]
    # Power per second must not grow with the number of pulses per second.
    amplitude *= (1 + rng.normal(0.0, voice.shimmer, len(before))) * np.sqrt(
        SAMPLE_RATE_HZ / pitch_hz[before]
    )
    whole = position.astype(int)
    train = np.zeros(length)
    np.add.at(train, whole, amplitude * (1 - (position - whole)))
    np.add.at(train, whole + 1, amplitude * (position - whole))
    return train


def _filter(voice: Voice, motion: Articulation, throat: np.ndarray, hiss: np.ndarray) -> np.ndarray:
    """Pass the throat signal through the formants and the hiss through its own band, both varying in time."""
    length, margin = len(throat), WINDOW // 2
    num_windows = length // HOP + 2
    # Hann windows at a quarter of their length sum to 2.
    taper = get_window("hann", WINDOW) / 2
    padded = [np.pad(signal, (margin, WINDOW + HOP)) for signal in (throat, hiss)]
    result = np.zeros(num_windows * HOP + FFT_SIZE)
    for first in range(0, num_windows, CHUNK_WINDOWS):
        starts = np.arange(first, min(first + CHUNK_WINDOWS, num_windows)) * HOP
        spans = starts[:, None] + np.arange(WINDOW)
        throat_bins, hiss_bins = (np.fft.rfft(signal[spans] * taper, FFT_SIZE) for signal in padded)  # (K, Q)
        now = np.minimum(starts * CONTROL_HZ // SAMPLE_RATE_HZ, len(motion.opening) - 1)
        bins = throat_bins * _tract(voice, motion, now) + hiss_bins * _hiss_band(motion, now)
        for start, piece in zip(starts, np.fft.irfft(bins, FFT_SIZE)):
            result[start : start + FFT_SIZE] += piece
    return result[margin : margin + length]


def _tract(voice: Voice, motion: Articulation, now: np.ndarray) -> np.ndarray:
    """Response (K, Q) of glottis, formants and radiation at control instants ``now`` (K,)."""
    opening, spread, tongue, nasal = (
        track[now] for track in (motion.opening, motion.spread, motion.tongue, motion.nasal)
    )
    f1 = 260.0 + 520.0 * np.minimum(opening, 1.0) * (1 - nasal) - 40.0 * np.maximum(-spread, 0.0)
    f2 = 1400.0 + 420.0 * spread + 380.0 * tongue
    f3 = np.maximum(2500.0 + 220.0 * spread + 150.0 * tongue, f2 + 350.0)
    formants_hz = (f1, f2, f3, *(np.full_like(f1, voice.f4_hz + gap_hz) for gap_hz in (0.0, 900.0, 2100.0)))
    bins_hz = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE_HZ)
    delay = np.exp(-2j * np.pi * bins_hz / SAMPLE_RATE_HZ)
    delay_twice = delay**2
    denominator = np.ones((len(now), len(bins_hz)), dtype=complex)
    for centre_hz, width_hz in zip(formants_hz, BANDWIDTHS_HZ):
        radius = np.exp(-np.pi * width_hz * (1 + 1.5 * nasal) / SAMPLE_RATE_HZ)
        b = (
            2
            * radius
            * np.cos(2 * np.pi * np.minimum(centre_hz * voice.formant_scale, 7600.0) / SAMPLE_RATE_HZ)
        )
        c = -(radius**2)
        denominator *= 1 - b[:, None] * delay - c[:, None] * delay_twice  # Klatt 1980, eq. 2
    glottis = 1 / (1 + 1j * bins_hz / voice.slope_hz) * (bins_hz > 40.0)
    response = glottis / denominator
    # Talkers even out how loud their vowels are: some of the difference between tract shapes is taken back.
    return response * np.mean(np.abs(response) ** 2, axis=1, keepdims=True) ** -0.15


def _hiss_band(motion: Articulation, now: np.ndarray) -> np.ndarray:
    """Response (K, Q) of the constriction that makes fricatives and bursts."""
    bins_hz = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE_HZ)
    centre_hz = motion.noise_hz[now][:, None]
    return np.exp(-0.5 * ((bins_hz - centre_hz) / (0.3 * centre_hz + 300.0)) ** 2)


def _to_audio_rate(track: np.ndarray, length: int) -> np.ndarray:
    times = np.arange(length) * (CONTROL_HZ / SAMPLE_RATE_HZ)
    return np.interp(times, np.arange(len(track)), track)
