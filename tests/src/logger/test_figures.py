"""Spectrogram levels, and pictures for the writers."""

import numpy as np
import pytest
import torch

from src.logger.utils import plot_spectrogram, plot_waveform, spectrogram_db

RATE_HZ = 16_000


def sine(frequency_hz: float, amplitude: float) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(8000) / RATE_HZ)).astype(np.float32)


@pytest.mark.parametrize("level_db", [0.0, -20.0])
def test_sine_reads_its_level_at_its_frequency(level_db):
    level = spectrogram_db(sine(1000.0, 10 ** (level_db / 20)))
    inner = level[:, 4:-4]
    assert set(inner.argmax(axis=0)) == {32}  # 1000 Hz of 31.25 Hz a bin
    np.testing.assert_allclose(inner.max(axis=0), level_db, atol=0.05)


def test_frames_are_centred_on_their_samples():
    click = np.zeros(4096, dtype=np.float32)
    click[2560] = 1.0
    assert spectrogram_db(click, hop=128).max(axis=0).argmax() == 20


def test_silence_and_clips_shorter_than_a_window_have_finite_levels():
    for audio in (np.zeros(1000, dtype=np.float32), np.ones(5, dtype=np.float32)):
        assert np.isfinite(spectrogram_db(audio)).all()


def test_spectrogram_pictures_share_a_scale_only_when_told():
    loud, soft = torch.from_numpy(sine(1000.0, 0.5)), torch.from_numpy(sine(1000.0, 0.005))
    peak_db = float(spectrogram_db(loud.numpy()).max())
    brightness = [
        plot_spectrogram(audio[None], peak_db=peak_db).astype(int).sum(axis=-1) for audio in (loud, soft)
    ]
    centre = (slice(20, 250), slice(60, 660))
    assert brightness[0][centre].max() > 1.3 * brightness[1][centre].max()
    own = plot_spectrogram(soft).astype(int).sum(axis=-1)
    assert own[centre].max() == brightness[0][centre].max()


def test_waveform_picture_follows_the_given_peak():
    def inked_rows(peak: float) -> int:
        blue = (plot_waveform(sine(1000.0, 0.5), peak=peak) == [31, 119, 180]).all(axis=-1)
        return int(blue.any(axis=1).sum())

    assert inked_rows(peak=0.5) > 1.8 * inked_rows(peak=1.0) > 0
