"""Cross-dimensional attention fusion (CAF) of a time-frequency map and a lip sequence.

Axes: B batch, C audio channels, V video channels, A heads, N STFT frames, Q frequency bins, F video frames.

Reference: Pegg, Li and Hu 2023, "RTFS-Net", cross-dimensional attention fusion block.
"""

import math

import torch
from torch import Tensor, nn

from src.model.blocks.frame_alignment import video_at_audio
from src.model.blocks.global_layer_norm import GlobalLayerNorm


class NormedChannelScale(nn.Module):
    """Depthwise 1x1 convolution and gLN, as the scale and shift of each channel that they amount to.

    gLN needs mean and variance over the whole map: both follow from those of each channel, which the value and the
    gate share, so that no map is written for either convolution.
    """

    def __init__(self, channels: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.norm_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: mean and variance of each channel (B, C) -> scale, shift (B, C, 1, 1)."""
        means = self.weight * mean
        centre = means.mean(dim=1, keepdim=True)
        spread = (self.weight.square() * variance + (means - centre).square()).mean(dim=1, keepdim=True)
        gain = self.norm_weight * (spread + self.eps).rsqrt()
        return (gain * self.weight)[..., None, None], (self.norm_bias - gain * centre)[..., None, None]


class CrossAttentionFusion(nn.Module):
    """Attention over time from the lips weighs the audio value, and a lip key passes through the audio gate.

    Both video maps are grouped convolutions, which is why this costs almost nothing. Lip frames are held by time
    (`frame_alignment`); the paper stretches them to the audio's length, the same where both last equally long.

    Args:
        channels, video_channels: C and V.
        heads: A; the attention is the mean over them.
        hop: of the STFT, in samples at 16 kHz.
    """

    def __init__(self, channels: int, video_channels: int, *, heads: int, hop: int) -> None:
        super().__init__()
        self.heads, self.hop = heads, hop

        def video_map(width: int) -> nn.Sequential:
            groups = math.gcd(channels, video_channels)
            return nn.Sequential(
                nn.Conv1d(video_channels, width, 1, groups=groups, bias=False), GlobalLayerNorm(width)
            )

        self.value, self.gate = NormedChannelScale(channels), NormedChannelScale(channels)
        self.attention, self.key = video_map(heads * channels), video_map(channels)

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        """Shape: (B, C, N, Q), (B, V, F) -> (B, C, N, Q)."""
        num_frames = audio.shape[2]
        heads = self.attention(video).unflatten(1, (-1, self.heads))
        attention = video_at_audio(heads.mean(dim=2).softmax(dim=-1), num_frames, self.hop)[..., None]
        key = video_at_audio(self.key(video), num_frames, self.hop)[..., None]
        mean = audio.mean(dim=(2, 3))
        variance = (audio - mean[..., None, None]).square_().mean(dim=(2, 3))
        scale, shift = self.value(mean, variance)
        attended = torch.addcmul(attention * shift, audio, attention * scale)
        scale, shift = self.gate(mean, variance)
        return attended.addcmul_(key, torch.addcmul(shift, audio, scale).relu_())
