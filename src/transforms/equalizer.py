"""Random frequency response of a channel: microphone, distance, codec."""

import torch

from pipeline.audio_io import SAMPLE_RATE_HZ
from pipeline.draw import chance, checked_probability
from pipeline.interpolation import between_frames

_LOWEST_HZ = 60.0


class RandomEqualizer:
    """Filters a voice by a random, smooth gain over frequency, without delay.

    Where a speaker was recorded with one microphone only, a separator learns to tell that microphone from others.
    Gains are drawn at frequencies that are evenly spaced by their logarithm, and joined by straight lines in dB.

    Args:
        p: probability that a voice is changed.
        gain_db: largest gain and loss.
        num_points: at how many frequencies from 60 Hz to 8 kHz a gain is drawn.

    Raises:
        ValueError: an option has no possible value.
    """

    def __init__(self, p: float = 0.5, gain_db: float = 8.0, num_points: int = 7) -> None:
        self._p = checked_probability("p", p)
        if gain_db < 0:
            raise ValueError(f"gain_db={gain_db}: must be 0 or more")
        if num_points < 2:
            raise ValueError(f"num_points={num_points}: must be 2 or more")
        self._gain_db, self._num_points = gain_db, num_points

    def __call__(self, voice: torch.Tensor) -> torch.Tensor:
        """Return the voice (T,) as another channel would have it, (T,)."""
        if not chance(self._p):
            return voice
        gains_db = (2 * torch.rand(self._num_points) - 1) * self._gain_db
        num_samples = voice.numel()
        size = 2 * num_samples  # room for the filter, which would wrap around
        hertz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ).clamp_min(_LOWEST_HZ)
        octaves = (hertz / _LOWEST_HZ).log2()
        place = octaves / octaves[-1] * (self._num_points - 1)
        response_db = between_frames(gains_db, place)
        spectrum = torch.fft.rfft(voice, size) * 10 ** (response_db / 20)
        return torch.fft.irfft(spectrum, size)[:num_samples]
