"""Self-attention over a sequence and a feed-forward network with a look at its neighbours.

Axes: B batch, C channels, F frames.

Reference: Li, Yang and Hu 2022, "TDANet", global attention.
"""

from torch import Tensor, nn

from src.model.blocks.global_layer_norm import GlobalLayerNorm


class GlobalAttention(nn.Module):
    """Multi-head self-attention, then 1x1, depthwise and 1x1 convolution; both residual.

    The depthwise convolution tells the order of the frames.
    """

    def __init__(self, channels: int, *, heads: int, kernel: int = 5) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        wide = 2 * channels
        self.feed_forward = nn.Sequential(
            GlobalLayerNorm(channels),
            nn.Conv1d(channels, wide, 1),
            nn.Conv1d(wide, wide, kernel, padding=kernel // 2, groups=wide),
            nn.ReLU(),
            nn.Conv1d(wide, channels, 1),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Shape: (B, C, F) -> the same."""
        tokens = self.attention_norm(frames.transpose(1, 2))
        frames = frames + self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2)
        return frames + self.feed_forward(frames)
