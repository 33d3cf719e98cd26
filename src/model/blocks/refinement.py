"""What an earlier pass made of the voices, put to use in the next.

Axes: B batch, S = 2 voices, N STFT frames, Q frequency bins, K bands, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SURENESS = 10.0  # log odds of an order per share of a voice's energy that the other order misses more
_FLOOR = 1e-3  # of the mean energy of a frame: pauses tell no order


class Refinement(nn.Module):
    """Gives two voices the places that they have in the estimates of an earlier pass, and lets them see those.

    An earlier pass ends with the voices apart, and its order with it settled, where the next one would begin with both
    in doubt (as the iterations of Isik et al., "Single-Channel Multi-Speaker Separation Using Deep Clustering", 2016,
    sec. 3.3, enhance what was separated before).

    Args:
        channels: C.
        stretch: frames, odd, over which the order is told: voices may have been exchanged for a while.
    """

    def __init__(self, channels: int, stretch: int) -> None:
        super().__init__()
        self.stretch = stretch
        self.seen = nn.Linear(channels, channels)
        self.begin_as_identity()

    def begin_as_identity(self) -> None:
        """Let the voices not see the estimates, as where it is added to a trained separator."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def placed(self, voices: Tensor, spectra: Tensor, earlier: Tensor) -> Tensor:
        """Voices in the places of the estimates that they are like.

        Shape: voices (B, S, N, K, C), spectra: what is made of them by now, and earlier, both complex (B, S, Q, N)
        -> (B, S, N, K, C).
        """
        own, other = (
            (spectra - estimate).abs().square().sum((1, 2)) for estimate in (earlier, earlier.flip(1))
        )
        energy = earlier.abs().square().sum((1, 2))
        sums = functional.avg_pool1d(
            torch.stack([other - own, energy], dim=1),
            self.stretch,
            1,
            self.stretch // 2,
            count_include_pad=False,
        )
        floor = _FLOOR * energy.mean(dim=1, keepdim=True) + 1e-8
        exchanged = (-_SURENESS * sums[:, 0] / (sums[:, 1] + floor)).sigmoid()
        return voices.lerp(voices.flip(1), exchanged[:, None, :, None, None].to(voices.dtype))

    def forward(self, voices: Tensor, estimates: Tensor) -> Tensor:
        """Voices that have seen the estimates in their places.

        Shape: voices (B, S, N, K, C), estimates (B, S, N, K, C), encoded as mixtures are -> (B, S, N, K, C).
        """
        return voices + self.seen(estimates)
