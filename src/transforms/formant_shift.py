"""Another throat for the same voice: formants move, pitch and time stay."""

import math
from collections.abc import Sequence

import torch

from pipeline.draw import chance, checked_probability, checked_range, uniform
from pipeline.interpolation import between_frames

_WINDOW, _HOP = 512, 128  # 32 and 8 ms
_QUEFRENCY = 40  # 2.5 ms: what changes slower over frequency is the throat, what changes faster the pitch
_ITERATIONS = 4
_MOST_DB = 20.0  # by which a band may rise or fall, so that no silence becomes a noise
_FLOOR = 1e-4


class FormantShift:
    """Stretches the spectral envelope of a voice along frequency.

    Speed moves pitch, formants and lips together; this one moves the formants alone, so that few speakers become many
    in what a separator can tell them apart by. The envelope of a frame is its log magnitude without the quefrencies
    above 2.5 ms, drawn over the peaks of the harmonics, and each bin gets the gain that lies between the envelope there
    and the stretched one: a filter that changes over time, without delay.

    Args:
        p: probability that a voice is changed.
        ratio: lowest and highest ratio of the new formants to the old, drawn evenly on a logarithmic scale.

    Raises:
        ValueError: an option has no possible value.

    Reference:
        Jaitly and Hinton, "Vocal tract length perturbation (VTLP) improves speech recognition", 2013; Roebel and Rodet,
        "Efficient spectral envelope estimation and its application to pitch shifting and envelope preservation", 2005.
    """

    def __init__(self, p: float = 0.5, ratio: Sequence[float] = (0.85, 1.18)) -> None:
        self._p = checked_probability("p", p)
        self._ratio = checked_range("ratio", ratio)
        if self._ratio[0] <= 0:
            raise ValueError(f"ratio={list(ratio)}: must be positive")

    def __call__(self, voice: torch.Tensor) -> torch.Tensor:
        """Return the voice (T,) out of another throat, (T,)."""
        if not chance(self._p) or voice.numel() <= _WINDOW:
            return voice
        low, high = self._ratio
        ratio = math.exp(uniform(math.log(low), math.log(high)))
        window = torch.hann_window(_WINDOW)
        spectrum = torch.stft(voice, _WINDOW, _HOP, window=window, return_complex=True)  # (Q, N)
        envelope = self._envelope(spectrum)
        stretched = between_frames(envelope, torch.arange(len(envelope)) / ratio)
        most = _MOST_DB / 20 * math.log(10)
        gain = (stretched - envelope).clamp(-most, most).exp()
        return torch.istft(spectrum * gain, _WINDOW, _HOP, window=window, length=voice.numel())

    @staticmethod
    def _envelope(spectrum: torch.Tensor) -> torch.Tensor:
        """Log magnitude of the envelope. Shape: complex (Q, N) -> (Q, N)."""
        magnitude = spectrum.abs()
        level = (magnitude + _FLOOR * magnitude.max() + torch.finfo(magnitude.dtype).tiny).log()
        envelope = level
        for _ in range(_ITERATIONS):  # valleys between harmonics filled up, so that it runs over their peaks
            cepstrum = torch.fft.irfft(torch.maximum(level, envelope), dim=0)
            cepstrum[_QUEFRENCY + 1 : -_QUEFRENCY] = 0
            envelope = torch.fft.rfft(cepstrum, dim=0).real
        return envelope
