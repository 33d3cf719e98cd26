"""Learnt lip embeddings for voices that have none.

Axes: B batch, S = 2 voices, T samples, F video frames (25 per second), D lip embedding.
"""

import torch
from torch import Tensor, nn

from src.model.blocks.absent_lips import AbsentLips
from src.model.blocks.lip_fusion import SAMPLES_PER_VIDEO_FRAME
from src.model.blocks.voices import lips_used


class LipSubstitutes(nn.Module):
    """Lip embeddings of both voices, learnt ones where a voice has none.

    Args:
        visual_dim: D.

    Raises:
        ValueError: there is no lip embedding to cue with.
    """

    def __init__(self, visual_dim: int) -> None:
        super().__init__()
        if visual_dim < 1:
            raise ValueError(
                f"model: visual_dim={visual_dim}, but this separator finds its voice by lips alone: use the width of "
                "the lip embeddings, or model=audio_only"
            )
        self.visual_dim = visual_dim
        self.absent = AbsentLips(visual_dim)

    def forward(
        self, visual: Tensor | None, visual_mask: Tensor | None, mix: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shape: visual (B, S, F, D) or None, visual_mask (B, S) bool or None (all present), mix (B, T) ->
        embeddings (B, S, F, D), lips used (B, S) bool. Without lips F covers the mixture.

        Raises:
            ValueError: the lip embeddings are not `visual_dim` wide.
        """
        used = lips_used(visual, visual_mask, mix)
        if visual is None or visual.shape[2] == 0:
            num_frames = -(-mix.shape[-1] // SAMPLES_PER_VIDEO_FRAME)
            return self.absent(used)[:, :, None].expand(-1, -1, num_frames, -1), used
        if visual.shape[-1] != self.visual_dim:
            raise ValueError(
                f"model: lip embeddings have {visual.shape[-1]} dimensions, the model was built for "
                f"{self.visual_dim} (model.visual_dim): use the cache that it was trained on"
            )
        return torch.where(used[:, :, None, None], visual, self.absent(used)[:, :, None]), used
