"""Band split: the spectrum as a sequence of sub-band embeddings, and back to a mask for every bin.

Axes: B batch, N STFT frames, Q frequency bins, K bands, C channels.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def erb_band_edges(num_bins: int, num_bands: int, sample_rate_hz: int = 16000) -> list[int]:
    """Bin edges of bands of equal width on the ERB-number scale, each at least two bins wide.

    Returns:
        num_bands + 1 increasing bin indices from 0 to num_bins.

    Reference: Glasberg and Moore 1990, eq. 4: E(f) = 21.4 log10(1 + 0.00437 f).
    """
    if num_bands * 2 > num_bins:
        raise ValueError(
            f"band split: num_bands={num_bands} needs at least {2 * num_bands} bins, not {num_bins}"
        )
    nyquist = sample_rate_hz / 2
    top = 21.4 * math.log10(1 + 0.00437 * nyquist)
    edges = [0]
    for band in range(1, num_bands):
        hertz = (10 ** (top * band / num_bands / 21.4) - 1) / 0.00437
        nearest = round(hertz / nyquist * (num_bins - 1))
        last_that_fits = num_bins - 2 * (num_bands - band)
        edges.append(min(max(nearest, edges[-1] + 2), last_that_fits))
    return [*edges, num_bins]


def band_widths(num_bins: int, num_bands: int) -> list[int]:
    """Bins of each of the bands of `erb_band_edges`."""
    return [high - low for low, high in pairwise(erb_band_edges(num_bins, num_bands))]


class BandEncoder(nn.Module):
    """One linear map per band from its bins to C channels."""

    def __init__(self, num_bins: int, num_bands: int, num_features: int, channels: int) -> None:
        super().__init__()
        self.widths = band_widths(num_bins, num_bands)
        self.bands = nn.ModuleList(nn.Linear(width * num_features, channels) for width in self.widths)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, N, Q, P) -> (B, N, K, C)."""
        bands = features.split(self.widths, dim=2)
        return torch.stack([linear(bins.flatten(2)) for linear, bins in zip(self.bands, bands)], dim=2)


class BandDecoder(nn.Module):
    """One linear map per band from C channels to P values for each of its bins.

    Starts at zero, so that what is decoded before training is exactly zero.
    """

    def __init__(self, num_bins: int, num_bands: int, channels: int, num_values: int) -> None:
        super().__init__()
        self.num_values = num_values
        widths = band_widths(num_bins, num_bands)
        self.bands = nn.ModuleList(nn.Linear(channels, width * num_values) for width in widths)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, embedding: Tensor) -> Tensor:
        """Shape: (B, N, K, C) -> (B, N, Q, P)."""
        bins = [linear(band) for linear, band in zip(self.bands, embedding.unbind(2))]
        return torch.cat(bins, dim=-1).unflatten(-1, (-1, self.num_values))
