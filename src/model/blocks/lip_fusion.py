"""Lip embeddings as a cue at the frame rate of the STFT.

Axes: B batch, S speakers, F video frames (25 per second), D lip embedding, N STFT frames, V cue channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

SAMPLES_PER_VIDEO_FRAME = 640  # 16 kHz over 25 fps


def resample_to_frames(visual: Tensor, num_frames: int, hop: int) -> Tensor:
    """Linear interpolation of 25 fps features at the centres of STFT frames.

    Video frame k covers samples 640 k to 640 k + 639, so its centre lies at 640 k + 320; STFT frame n is
    centred at n * hop. Beyond the first and last centre the edge frame is held.

    Shape: (B, F, V) -> (B, N, V).
    """
    last = visual.shape[1] - 1
    samples = torch.arange(num_frames, device=visual.device) * hop
    position = (samples - SAMPLES_PER_VIDEO_FRAME / 2) / SAMPLES_PER_VIDEO_FRAME
    position = position.clamp(0, last)
    left = position.floor().long()
    share = (position - left).to(visual.dtype)[:, None]
    right = (left + 1).clamp(max=last)
    return visual[:, left] * (1 - share) + visual[:, right] * share


class LipEncoder(nn.Module):
    """Small temporal network over cached lip embeddings.

    The mean over time is taken out first: it tells whose face it is, not what is said, and a network trained on
    few faces would use it to recognise its training clips.

    A voice without lips gets a learnt cue instead: one of two slots where neither voice has lips (the voices
    must differ in something), and 'the other voice' where only its companion has them.

    Args:
        visual_dim: D of the cached embedding.
        channels: V.
        dropout: share of cue channels dropped in training; lips of few faces are easily learnt by heart.
    """

    SLOTS, OTHER = slice(0, 2), 2

    def __init__(self, visual_dim: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.visual_dim = visual_dim
        self.norm = nn.LayerNorm(visual_dim, elementwise_affine=False)
        self.project = nn.Linear(visual_dim, channels)
        self.dropout = nn.Dropout(dropout)
        self.context = nn.Conv1d(channels, channels, 5, padding=2)
        self.out = nn.Conv1d(channels, channels, 3, padding=1)
        self.no_lips = nn.Parameter(torch.randn(3, channels))

    def substitutes(self, visual_mask: Tensor) -> Tensor:
        """Cues for voices without lips. Shape: (B, S=2) -> (B, S, V)."""
        alone = ~visual_mask.any(dim=1)[:, None, None]
        return torch.where(alone, self.no_lips[self.SLOTS], self.no_lips[self.OTHER])

    def forward(self, visual: Tensor, visual_mask: Tensor, num_frames: int, hop: int) -> Tensor:
        """Shape: visual (B, S, F, D), visual_mask (B, S) bool -> cue (B, S, N, V)."""
        if visual.shape[-1] != self.visual_dim:
            raise ValueError(
                f"model: lip embeddings have {visual.shape[-1]} dimensions, the model was built for "
                f"{self.visual_dim} (model.visual_dim): use the cache that it was trained on"
            )
        batch, speakers = visual_mask.shape
        visual = visual.flatten(0, 1)
        motion = self.norm(visual - visual.mean(dim=1, keepdim=True))
        lips = self.dropout(self.project(motion))
        lips = lips + functional.silu(self.context(lips.transpose(1, 2))).transpose(1, 2)
        lips = lips + functional.silu(self.out(lips.transpose(1, 2))).transpose(1, 2)
        lips = resample_to_frames(lips, num_frames, hop).unflatten(0, (batch, speakers))
        return torch.where(visual_mask[:, :, None, None], lips, self.substitutes(visual_mask)[:, :, None])

    def without_lips(self, batch: int, num_frames: int) -> Tensor:
        """The cue when no voice of the batch has lips. Shape: (B, S=2, N, V)."""
        return self.no_lips[self.SLOTS][None, :, None].expand(batch, -1, num_frames, -1)
