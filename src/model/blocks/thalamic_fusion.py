"""Audio and video told of each other between two cycles of their sub-networks.

Axes: B batch, C audio channels, V video channels, N audio frames, F video frames.

Reference: Li et al. 2022, CTCNet, audio-visual fusion in the thalamic sub-network.
"""

import torch
from torch import Tensor, nn

from src.model.blocks.frame_alignment import audio_at_video, video_at_audio
from src.model.blocks.global_layer_norm import GlobalLayerNorm


class ThalamicFusion(nn.Module):
    """Concatenation and 1x1 convolution, for each modality at its own frame rate.

    Frames of the other modality are taken by time (`frame_alignment`); the paper stretches them.

    Args:
        channels, video_channels: C and V.
        hop: samples (at 16 kHz) between two audio frames.
        to_video: whether the video is told too; after the last fusion nothing listens to it.
    """

    def __init__(self, channels: int, video_channels: int, *, hop: int, to_video: bool) -> None:
        super().__init__()
        self.hop, both = hop, channels + video_channels

        def merge(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(both, width, 1), GlobalLayerNorm(width))

        self.audio = merge(channels)
        self.video = merge(video_channels) if to_video else None

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """Shape: (B, C, N), (B, V, F) -> (B, C, N), (B, V, F) or None."""
        shown = video_at_audio(video, audio.shape[-1], self.hop)
        told_audio = self.audio(torch.cat([audio, shown], dim=1))
        if self.video is None:
            return told_audio, None
        heard = audio_at_video(audio, video.shape[-1], self.hop)
        return told_audio, self.video(torch.cat([video, heard], dim=1))
