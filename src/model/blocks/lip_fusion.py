"""Lip embeddings as a cue at the frame rate of the STFT.

Axes: B batch, S speakers, F video frames (25 per second), D lip embedding, P directions in it, N STFT frames,
V cue channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.interpolation import between_frames

SAMPLES_PER_VIDEO_FRAME = 640  # 16 kHz over 25 fps


def resample_to_frames(visual: Tensor, num_frames: int, hop: int) -> Tensor:
    """Linear interpolation of 25 fps features at the centres of STFT frames.

    Video frame k covers samples 640 k to 640 k + 639, so its centre lies at 640 k + 320; STFT frame n is
    centred at n * hop. Beyond the first and last centre the edge frame is held.

    Shape: (B, F, V) -> (B, N, V).
    """
    samples = torch.arange(num_frames, device=visual.device) * hop
    return between_frames(visual, (samples - SAMPLES_PER_VIDEO_FRAME / 2) / SAMPLES_PER_VIDEO_FRAME, dim=1)


class LipEncoder(nn.Module):
    """Small temporal network over cached lip embeddings.

    The mean over time is taken out first: it tells whose face it is, not what is said. Of the rest it sees a few
    directions that move with the voice, fitted before training (`synchrony`, see `src.trainer.synchrony`) and then
    fixed: a network that chooses its own directions on few faces recognises its training clips by them. With faces
    enough it may have some of its own beside them (`learnt`).

    Directions are worth more on the faces that they were fitted to than on others. In training something of the lips of
    another clip is put over each, of the same variance in sum, until it is worth as much as on others (`kept`).

    Args:
        visual_dim: D of the cached embedding.
        channels: V.
        synchronous: directions fixed before training; random ones until `fit` is called.
        learnt: directions learnt in training.
        dropout: share of cue channels dropped in training.
        as_unseen: whether training lips are made as weak as those of other faces.

    Raises:
        ValueError: there are no directions.
    """

    CONTEXT = 5  # frames, of the fixed directions

    def __init__(
        self,
        visual_dim: int,
        channels: int,
        *,
        synchronous: int,
        learnt: int,
        dropout: float,
        as_unseen: bool = True,
    ) -> None:
        super().__init__()
        if synchronous + learnt < 1:
            raise ValueError("model.synchronous=0 and model.learnt=0: one of them must be positive")
        self.visual_dim, self.num_directions = visual_dim, synchronous + learnt
        self.as_unseen = as_unseen
        fan_in = visual_dim * self.CONTEXT
        self.register_buffer("synchrony", torch.randn(synchronous, visual_dim, self.CONTEXT) / fan_in**0.5)
        self.register_buffer("kept", torch.ones(synchronous))
        self.norm = nn.LayerNorm(visual_dim, elementwise_affine=False)
        self.project = nn.Linear(visual_dim, learnt) if learnt else None
        self.combine = nn.Linear(synchronous + learnt, channels)
        self.dropout = nn.Dropout(dropout)
        self.context = nn.Conv1d(channels, channels, 5, padding=2)
        self.out = nn.Conv1d(channels, channels, 3, padding=1)

    def fit(self, projection: Tensor, kept: Tensor) -> None:
        """Fix the directions that move with the voice. Shape: (K, D, L), (K,), as in `Synchrony`."""
        assert projection.shape == self.synchrony.shape, (projection.shape, self.synchrony.shape)
        self.synchrony.copy_(projection)
        self.kept.copy_(kept)

    def fixed(self, motion: Tensor) -> Tensor:
        """The fixed directions of lips less their mean over time. Shape: (B, F, D) -> (B, F, K)."""
        kernel = self.synchrony.to(motion.dtype)
        return functional.conv1d(motion.transpose(1, 2), kernel, padding=self.CONTEXT // 2).transpose(1, 2)

    def forward(self, visual: Tensor, used: Tensor, num_frames: int, hop: int) -> tuple[Tensor, Tensor]:
        """Shape: visual (B, S, F, D), used (B, S) -> cue (B, S, N, V), directions (B, S, N, P).

        Raises:
            ValueError: the lip embeddings are not `visual_dim` wide.
        """
        if visual.shape[-1] != self.visual_dim:
            raise ValueError(
                f"model: lip embeddings have {visual.shape[-1]} dimensions, the model was built for "
                f"{self.visual_dim} (model.visual_dim): use the cache that it was trained on"
            )
        motion = (visual - visual.mean(dim=2, keepdim=True)).flatten(0, 1)
        parts = []
        if len(self.synchrony):
            fixed = self.fixed(motion)
            if self.training and self.as_unseen:
                fixed = self.kept * fixed + (1 - self.kept.square()).sqrt() * _others(fixed, used)
            parts.append(fixed)
        if self.project is not None:
            parts.append(self.project(self.norm(motion).to(self.project.weight.dtype)))
        directions = torch.cat(parts, dim=-1).to(self.combine.weight.dtype)
        cue = self.dropout(self.combine(directions))
        cue = cue + functional.silu(self.context(cue.transpose(1, 2))).transpose(1, 2)
        cue = cue + functional.silu(self.out(cue.transpose(1, 2))).transpose(1, 2)
        both = resample_to_frames(torch.cat([cue, directions], dim=-1), num_frames, hop)
        return both.unflatten(0, visual.shape[:2]).split([cue.shape[-1], directions.shape[-1]], dim=-1)


def _others(streams: Tensor, used: Tensor) -> Tensor:
    """For every stream that is used, one of another mixture; where there is none, its own half its length later.

    Shape: streams (B S, F, K), used (B, S) -> (B S, F, K).
    """
    present = used.flatten().nonzero()[:, 0]
    partner, mixture = present, present // used.shape[1]
    for away in (1, 2):  # a mixture has two streams at most, and the next one may be of the same
        candidate = present.roll(-away)
        same = partner // used.shape[1] == mixture
        partner = torch.where(same, candidate, partner)
    others = streams.roll(streams.shape[1] // 2, dims=1)
    alone = (partner // used.shape[1] == mixture)[:, None, None]
    others[present] = torch.where(alone, others[present], streams[partner])
    return others
