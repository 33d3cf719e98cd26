"""Attractors of two voices in an embedding space, found from learnt anchor points.

Axes: B batch, S = 2 voices, X time-frequency bins, E embedding, A anchors, P pairs of anchors.

Reference: Luo, Chen and Mesgarani, "Speaker-independent speech separation with deep attractor network", 2018,
    section on the anchored network (ADANet).
"""

from itertools import combinations

import torch
from torch import Tensor, nn

from src.model.blocks.voices import NUM_VOICES


class AnchoredAttractors(nn.Module):
    """Every pair of anchors draws the bins to itself softly, which gives a pair of attractors each; the pair
    whose attractors are least alike is the answer.

    Args:
        anchors: A, at least one a voice.
        dim: E.

    Raises:
        ValueError: fewer anchors than voices.
    """

    def __init__(self, anchors: int, dim: int) -> None:
        super().__init__()
        if anchors < NUM_VOICES:
            raise ValueError(
                f"attractors: anchors={anchors} must be {NUM_VOICES} or more, one a voice at least"
            )
        self.anchors = nn.Parameter(torch.randn(anchors, dim))
        pairs = torch.tensor(list(combinations(range(anchors), NUM_VOICES)))
        self.register_buffer("pairs", pairs, persistent=False)

    def forward(self, embedding: Tensor, salient: Tensor) -> Tensor:
        """Attractors.

        Shape: embedding (B, X, E), salient (B, X), 1 in bins that count and 0 in those too faint -> (B, S, E).
        """
        # (B, X, A) -> (B, X, P, S)
        assignment = (embedding @ self.anchors.T)[..., self.pairs].softmax(dim=-1) * salient[..., None, None]
        # (B, P * S, X) @ (B, X, E)
        weighted = assignment.flatten(2).transpose(1, 2) @ embedding
        total = assignment.flatten(2).sum(dim=1)[..., None]
        attractors = (weighted / total.clamp_min(1e-8)).unflatten(1, (-1, NUM_VOICES))
        likeness = attractors.prod(dim=2).sum(dim=-1)  # inner product of the two of a pair, (B, P)
        return attractors[torch.arange(len(attractors), device=attractors.device), likeness.argmin(dim=1)]
