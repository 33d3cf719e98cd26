"""Lips as a cue in the time domain: temporal convolutions at 25 fps, then upsampling to the encoder's frames.

Axes: B batch, S = 2 voices, F video frames, D lip embedding, N frames, V channels.

Reference: Wu et al., "Time domain audio visual speech separation", 2019, video encoder.
"""

import torch
from torch import Tensor, nn

from src.model.blocks.absent_lips import AbsentLips
from src.model.blocks.global_layer_norm import GlobalLayerNorm
from src.model.blocks.lip_fusion import resample_to_frames


class LipConvBlock(nn.Module):
    """ReLU, normalisation and a depthwise-separable convolution with a residual path.

    Normalised by gLN and not, as in the paper, by batch normalisation: a voice's cue must not depend on the other
    lips of the batch, least of all on zeros that stand for absent ones.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            GlobalLayerNorm(channels),
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, lips: Tensor) -> Tensor:
        """Shape: (B, V, F) -> the same."""
        return lips + self.layers(lips)


class LipConvStack(nn.Module):
    """Cue of every voice at the frames of the audio encoder; learnt embeddings where lips are absent.

    Args:
        visual_dim: D.
        channels: V.
        blocks: convolution blocks after the projection to V channels.
        kernel: their length in video frames, odd.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, *, visual_dim: int, channels: int, blocks: int, kernel: int = 3) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"lip convolution stack: kernel={kernel} must be odd to keep the length")
        self.visual_dim = visual_dim
        self.project = nn.Linear(visual_dim, channels)
        self.blocks = nn.Sequential(*(LipConvBlock(channels, kernel) for _ in range(blocks)))
        self.absent = AbsentLips(channels)

    def forward(self, visual: Tensor | None, used: Tensor, num_frames: int, hop: int) -> Tensor:
        """Cue of every voice.

        Args:
            used: which voices have lips (`blocks.voices.lips_used`); none where `visual` is None or empty.
            num_frames, hop: frames of the audio encoder, and their distance in samples.

        Shape: visual (B, S, F, D) or None, used (B, S) bool -> (B, S, V, N).

        Raises:
            ValueError: the lip embeddings are not `visual_dim` wide.
        """
        absent = self.absent(used)[..., None]
        if visual is None or visual.shape[2] == 0:
            return absent.expand(-1, -1, -1, num_frames)
        if visual.shape[-1] != self.visual_dim:
            raise ValueError(
                f"model: lip embeddings have {visual.shape[-1]} dimensions, the model was built for "
                f"{self.visual_dim} (model.visual_dim): use the cache that it was trained on"
            )
        lips = self.blocks(self.project(visual.flatten(0, 1)).transpose(1, 2))
        lips = resample_to_frames(lips.transpose(1, 2), num_frames, hop).transpose(1, 2)
        return torch.where(used[..., None, None], lips.unflatten(0, used.shape), absent)
