"""Which of two voices moves with whose lips for the moment.

Axes: B batch, S = 2 voices, N STFT frames, K bands, C channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_PACE = 10  # times as fast as other parameters these few learn: they have a longer way to go


class LipTracking(nn.Module):
    """Lets two voices change places where they have changed places: one that moves with its lips at first, and with the
    other's lips for a while, is taken for the other voice meanwhile.

    How much a moment speaks for the order of the voices is summed up over stretches of several lengths around it, and
    the sums are weighed against each other.

    Args:
        stretches: their lengths, in frames, odd; each with the weight that it begins with.
    """

    # Taken as it is into a mean with weights of a separator that does not track.
    JOINS_A_MEAN = True

    def __init__(self, stretches: Mapping[int, float]) -> None:
        super().__init__()
        self.stretches = tuple(stretches)
        self.weights = nn.Parameter(torch.tensor(list(stretches.values())) / _PACE)

    def forward(self, voices: Tensor, evidence: Tensor, used: Tensor) -> Tensor:
        """Voices, each in the place of the lips that it moves with.

        Shape: voices (B, S, N, K, C), evidence (B, N) log odds that every frame adds to the order that the voices are
        in, used (B, S) bool -> (B, S, N, K, C).
        """
        with torch.autocast(voices.device.type, enabled=False):
            evidence = evidence.float()[:, None]
            sums = [
                length * functional.avg_pool1d(evidence, length, 1, length // 2) for length in self.stretches
            ]
            order = torch.einsum("w,bwn->bn", _PACE * self.weights.float(), torch.cat(sums, dim=1))
            exchanged = (-order).sigmoid() * used.any(dim=1, keepdim=True)
        return voices.lerp(voices.flip(1), exchanged[:, None, :, None, None].to(voices.dtype))
