"""Band split: the spectrum as a sequence of sub-band embeddings, and back to a mask for every bin.

Axes: B batch, N STFT frames, Q frequency bins, K bands, C channels.
"""

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from pipeline.interpolation import between_frames

NARROWEST_HZ = 60


def erb_band_edges(num_bins: int, num_bands: int, sample_rate_hz: int = 16000) -> list[int]:
    """Bin edges of bands of equal width on the ERB-number scale, each at least two bins and 60 Hz wide.

    So the bands are the same ones whatever the window, as far as its bins allow.

    Returns:
        num_bands + 1 increasing bin indices from 0 to num_bins.

    Reference: Glasberg and Moore 1990, eq. 4: E(f) = 21.4 log10(1 + 0.00437 f).
    """
    nyquist = sample_rate_hz / 2
    narrowest = max(2, math.ceil(NARROWEST_HZ / nyquist * (num_bins - 1)))
    if num_bands * narrowest > num_bins:
        raise ValueError(
            f"band split: num_bands={num_bands} needs at least {narrowest * num_bands} bins, not {num_bins}"
        )
    top = 21.4 * math.log10(1 + 0.00437 * nyquist)
    edges = [0]
    for band in range(1, num_bands):
        hertz = (10 ** (top * band / num_bands / 21.4) - 1) / 0.00437
        nearest = round(hertz / nyquist * (num_bins - 1))
        last_that_fits = num_bins - narrowest * (num_bands - band)
        edges.append(min(max(nearest, edges[-1] + narrowest), last_that_fits))
    return [*edges, num_bins]


def band_widths(num_bins: int, num_bands: int) -> list[int]:
    """Bins of each of the bands of `erb_band_edges`."""
    return [high - low for low, high in pairwise(erb_band_edges(num_bins, num_bands))]


def _of_bands(weights: Mapping[str, Tensor], kind: str) -> list[Tensor]:
    """Weights or biases of a module, one band after the other."""
    bands = sorted((int(name.split(".")[1]), w) for name, w in weights.items() if name.endswith(f".{kind}"))
    return [weight for _, weight in bands]


def _check_channels(bands: list[Tensor], axis: int, channels: int) -> None:
    """Of the weights of a module to begin from.

    Raises:
        ValueError: they are of another number of channels.
    """
    if (there := bands[0].shape[axis]) != channels:
        raise ValueError(f"{there} channels cannot become {channels}")


def _at_other_bins(bands: list[Tensor], widths: list[int], axis: int) -> list[Tensor]:
    """Interpolate what belongs to the bins of each band, for a window of another length; edge bins are held.

    Raises:
        ValueError: not the same number of bands.
    """
    if len(bands) != len(widths):
        raise ValueError(f"{len(bands)} bands cannot become {len(widths)}")
    old, new = ([0, *accumulate(w)] for w in ([band.shape[axis] for band in bands], widths))
    ratio = (old[-1] - 1) / (new[-1] - 1)
    return [
        between_frames(band, torch.arange(*edges) * ratio - first, axis)
        for band, first, edges in zip(bands, old, pairwise(new))
    ]


class BandEncoder(nn.Module):
    """One linear map per band from its bins to C channels."""

    def __init__(self, num_bins: int, num_bands: int, num_features: int, channels: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.widths = band_widths(num_bins, num_bands)
        self.bands = nn.ModuleList(nn.Linear(width * num_features, channels) for width in self.widths)

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over from an encoder of another window: a bin weighs its share of what its frequency weighed there.

        Raises:
            ValueError: it has another number of bands or channels.
        """
        bands = _of_bands(weights, "weight")
        _check_channels(bands, 0, self.bands[0].out_features)
        before = [weight.unflatten(1, (-1, self.num_features)) for weight in bands]
        for linear, old, new in zip(self.bands, before, _at_other_bins(before, self.widths, 1)):
            linear.weight.data.copy_((new * (old.shape[1] / new.shape[1])).flatten(1))

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, N, Q, P) -> (B, N, K, C)."""
        bands = features.split(self.widths, dim=2)
        return torch.stack([linear(bins.flatten(2)) for linear, bins in zip(self.bands, bands)], dim=2)


class BandDecoder(nn.Module):
    """One linear map per band from C channels to a value for each of its bins.

    Starts at zero, so that what is decoded before training is exactly zero. A bias is of use only where the voices are
    not set off against each other afterwards.
    """

    def __init__(self, num_bins: int, num_bands: int, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.widths = band_widths(num_bins, num_bands)
        self.bands = nn.ModuleList(nn.Linear(channels, width, bias) for width in self.widths)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over from a decoder of another window: values between those of the bins there.

        Biases that only one of the two has are left as they are.

        Raises:
            ValueError: it has another number of bands or channels.
        """
        _check_channels(_of_bands(weights, "weight"), 1, self.bands[0].in_features)
        own = dict(self.bands[0].named_parameters())
        for kind in {name.rpartition(".")[2] for name in weights} & own.keys():
            new = _at_other_bins(_of_bands(weights, kind), self.widths, 0)
            for linear, values in zip(self.bands, new):
                getattr(linear, kind).data.copy_(values)

    def forward(self, embedding: Tensor) -> Tensor:
        """Shape: (B, N, K, C) -> (B, N, Q)."""
        return torch.cat([linear(band) for linear, band in zip(self.bands, embedding.unbind(2))], dim=-1)
