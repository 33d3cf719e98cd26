"""Which of two anonymous voices moves with whose lips.

Axes: B batch, S = 2 voices, N STFT frames, K bands, C channels, P directions of the lips.
"""

import torch
from torch import Tensor, nn


class LipMatching(nn.Module):
    """Puts two anonymous voices into the order of the lips.

    Who speaks is told by the whole recording, not by any stretch of it: what a voice does is summed up against what
    each pair of lips does over all frames, and the two orders are weighed by that. The lips enter as they are, without
    a weight of their own, so that there is nothing to learn faces by heart with. Swapping the lips swaps the voices.

    Args:
        channels: C.
        num_bands: K.
        squeezed: channels a band keeps in the description of the sound.
        lip_directions: P.
        context: frames of sound around each that describe it.
    """

    def __init__(
        self, channels: int, num_bands: int, squeezed: int, lip_directions: int, context: int = 11
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.squeeze = nn.Linear(channels, squeezed)
        self.sound = nn.Conv1d(num_bands * squeezed, lip_directions, context, padding=context // 2)

    def evidence(self, voices: Tensor, lips: Tensor, used: Tensor, frames_per_second: float) -> Tensor:
        """Log odds that voice i goes with lips i. Shape: voices (B, S, N, K, C), lips (B, S, N, P), used (B, S)
        -> (B,)."""
        vectors = self.squeeze(self.norm(voices)).flatten(3).flatten(0, 1)  # (B S, N, K q)
        sound = self.sound(vectors.transpose(1, 2)).unflatten(0, voices.shape[:2])  # (B, S, P, N)
        sound = sound - sound.mean(dim=-1, keepdim=True)
        lips = torch.where(used[:, :, None, None], lips - lips.mean(dim=2, keepdim=True), 0.0)
        score = torch.einsum("bvnp,bspn->bvs", lips.float(), sound.float()) / frames_per_second
        return score[:, 0, 0] + score[:, 1, 1] - score[:, 0, 1] - score[:, 1, 0]

    def forward(self, voices: Tensor, lips: Tensor, used: Tensor, frames_per_second: float) -> Tensor:
        """Shape: voices (B, S, N, K, C), lips (B, S, N, P), used (B, S) bool -> voices in the order of the lips."""
        same = self.evidence(voices, lips, used, frames_per_second).sigmoid()
        same = torch.where(used.any(dim=1), same, 1.0)[:, None, None, None, None].to(voices.dtype)
        return same * voices + (1 - same) * voices.flip(1)
