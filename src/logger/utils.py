"""Figures of audio: spectrograms and waveforms as images for the writers.

Axes: T samples, K frequency bins, N frames. No pyplot, so no display is asked for and nothing piles up
between calls.
"""

from typing import Any

import numpy as np

from src.logger.payloads import to_array

FLOOR_DB = -80.0


def spectrogram_db(audio: np.ndarray, n_fft: int = 512, hop: int = 128) -> np.ndarray:
    """Magnitude spectrogram in dB re a full-scale sine.

    Shape:
        audio: (T,). Returns (K, N) with K = n_fft / 2 + 1 and frame n centred on sample n * hop.
    """
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    # At least one frame, and the last samples within one.
    num_frames = 1 + -(-len(audio) // hop)
    padded = np.zeros(n_fft + (num_frames - 1) * hop, dtype=np.float32)
    padded[n_fft // 2 : n_fft // 2 + len(audio)] = audio
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]  # (N, n_fft)
    magnitude = np.abs(np.fft.rfft(frames * window, axis=-1)) * (2 / window.sum())
    return 20 * np.log10(np.maximum(magnitude.T, 1e-10))


def plot_spectrogram(audio: Any, sample_rate: int = 16_000, peak_db: float | None = None) -> np.ndarray:
    """Spectrogram with axes in s and kHz.

    Args:
        audio: (T,) or (1, T).
        peak_db: top of the colour scale, which reaches 80 dB down; None is the loudest bin. Pass one value
            for pictures that are to be compared.

    Shape:
        returns (H, W, 3) uint8.
    """
    samples = to_array(audio).ravel()
    level_db = spectrogram_db(samples)
    top_db = float(level_db.max()) if peak_db is None else peak_db
    figure, axes = _figure()
    picture = axes.imshow(
        level_db,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=top_db + FLOOR_DB,
        vmax=top_db,
        extent=(0, len(samples) / sample_rate, 0, sample_rate / 2000),
    )
    axes.set_ylabel("frequency, kHz")
    figure.colorbar(picture, ax=axes, label="dB re full scale")
    return _pixels(figure)


def plot_waveform(audio: Any, sample_rate: int = 16_000, peak: float | None = None) -> np.ndarray:
    """Waveform over s.

    Args:
        audio: (T,) or (1, T).
        peak: the ordinate reaches from -peak to peak; None fits the audio.

    Shape:
        returns (H, W, 3) uint8.
    """
    samples = to_array(audio).ravel()
    figure, axes = _figure()
    axes.plot(np.arange(len(samples)) / sample_rate, samples, linewidth=0.6)
    limit = peak if peak is not None else float(np.abs(samples).max(initial=0.0))
    axes.set_ylim(-(limit or 1.0), limit or 1.0)
    axes.set_xlim(0, max(len(samples), 1) / sample_rate)
    axes.set_ylabel("amplitude")
    return _pixels(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel("time, s")
    return figure, axes


def _pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
