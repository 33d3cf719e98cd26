"""Noise in the mixture."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.audio_io import SAMPLE_RATE_HZ, audio_info, list_audio, read_audio
from pipeline.draw import chance, checked_probability, checked_range, integer, uniform

_SILENT_POWER = 1e-10  # below -100 dBFS a signal-to-noise ratio means nothing


class AddNoise:
    """Adds noise to the mixture at a random signal-to-noise ratio; the sources stay clean.

    The ratio is that of the powers of mixture and noise over the whole item. A silent mixture, and a silent piece of
    noise, leave the item as it is.

    Args:
        p: probability that an item is changed.
        snr_db: lowest and highest ratio.
        folder: noise recordings, at any depth; a random piece of a random file is taken, repeated where it is
            shorter than the mixture. None: Gaussian noise whose power falls as 1/f**a, with a drawn from 0 (white)
            to 2 (brown).

    Raises:
        ValueError: an option has no possible value, or the folder holds no audio.
    """

    def __init__(
        self, p: float = 0.5, snr_db: Sequence[float] = (0.0, 20.0), folder: str | Path | None = None
    ) -> None:
        self._p = checked_probability("p", p)
        self._snr_db = checked_range("snr_db", snr_db)
        self._files = None if folder is None else list_audio(folder)

    def __call__(self, item: dict) -> dict:
        """Return the item with noise in ``mix`` (T,)."""
        if not chance(self._p):
            return item
        mix = item["mix"]
        snr_db = uniform(*self._snr_db)
        noise = (
            coloured_noise(mix.numel(), uniform(0, 2)) if self._files is None else self._piece(mix.numel())
        )
        mix_power, noise_power = mix.square().mean(), noise.square().mean()
        if mix_power < _SILENT_POWER or noise_power < _SILENT_POWER:
            return item
        gain = (mix_power / noise_power).sqrt() * 10 ** (-snr_db / 20)
        return {**item, "mix": mix + gain * noise}

    def _piece(self, num_samples: int) -> torch.Tensor:
        path = self._files[integer(len(self._files))]
        info = audio_info(path)
        total = -(-info.num_samples * SAMPLE_RATE_HZ // info.rate_hz)
        piece = read_audio(path, start=integer(max(0, total - num_samples) + 1), num_samples=num_samples)
        return piece.repeat(-(-num_samples // piece.numel()))[:num_samples]


def coloured_noise(num_samples: int, exponent: float) -> torch.Tensor:
    """Gaussian noise of power density 1/f**exponent: (T,)."""
    spectrum = torch.fft.rfft(torch.randn(num_samples))
    frequency = torch.arange(spectrum.numel(), dtype=torch.float32).clamp_min(1)
    return torch.fft.irfft(spectrum * frequency ** (-exponent / 2), n=num_samples)
