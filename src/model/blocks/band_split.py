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


class BandGather(nn.Module):
    """Index tables between bins and bands padded to the widest band."""

    def __init__(self, num_bins: int, num_bands: int) -> None:
        super().__init__()
        edges = erb_band_edges(num_bins, num_bands)
        widths = [high - low for low, high in pairwise(edges)]
        self.num_bands, self.width = num_bands, max(widths)
        bins = torch.zeros(num_bands, self.width, dtype=torch.long)
        used = torch.zeros(num_bands, self.width, dtype=torch.bool)
        for band, (low, width) in enumerate(zip(edges, widths)):
            bins[band, :width] = torch.arange(low, low + width)
            used[band, :width] = True
        self.register_buffer("bins", bins.flatten(), persistent=False)
        self.register_buffer("used", used.float()[..., None], persistent=False)
        self.register_buffer("slots", used.flatten().nonzero()[:, 0], persistent=False)

    def to_bands(self, bins: Tensor) -> Tensor:
        """Shape: (B, N, Q, P) -> (B, N, K, W, P), zeros where a band is narrower than W."""
        gathered = bins.index_select(2, self.bins)
        return gathered.unflatten(2, (self.num_bands, self.width)) * self.used.to(bins.dtype)

    def to_bins(self, bands: Tensor) -> Tensor:
        """Shape: (B, N, K, W, P) -> (B, N, Q, P)."""
        return bands.flatten(2, 3).index_select(2, self.slots)


class BandEncoder(nn.Module):
    """One linear map per band from its bins to C channels, all bands in one batched product."""

    def __init__(self, gather: BandGather, num_features: int, channels: int) -> None:
        super().__init__()
        self.gather = gather
        fan_in = gather.width * num_features
        self.weight = nn.Parameter(torch.randn(gather.num_bands, fan_in, channels) / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.zeros(gather.num_bands, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, N, Q, P) -> (B, N, K, C)."""
        bands = self.gather.to_bands(features).flatten(-2)
        return torch.einsum("bnkw,kwc->bnkc", bands, self.weight) + self.bias


class BandDecoder(nn.Module):
    """One linear map per band from C channels to P values for each of its bins.

    Starts at zero, so that what is decoded before training is exactly zero.
    """

    def __init__(self, gather: BandGather, channels: int, num_values: int) -> None:
        super().__init__()
        self.gather, self.num_values = gather, num_values
        self.weight = nn.Parameter(torch.zeros(gather.num_bands, channels, gather.width * num_values))
        self.bias = nn.Parameter(torch.zeros(gather.num_bands, gather.width * num_values))

    def forward(self, embedding: Tensor) -> Tensor:
        """Shape: (B, N, K, C) -> (B, N, Q, P)."""
        bands = torch.einsum("bnkc,kcw->bnkw", embedding, self.weight) + self.bias
        return self.gather.to_bins(bands.unflatten(-1, (self.gather.width, self.num_values)))
