"""Blocks that mix sub-band embeddings along time and frequency.

Axes: B batch (or batch times voices), N STFT frames, K bands, C channels, H full-band features.
"""

from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.lstm import LSTM
from src.model.blocks.voice_attention import VoiceAttention


class LocalMixer(nn.Module):
    """3x3 convolution over neighbouring frames and bands, dilated along time.

    The embedding keeps its channels last in memory, which is the layout that the convolution kernels prefer:
    no copy is made between this and the linear layers around it.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=(dilation, 1), dilation=(dilation, 1))
        self.out = nn.Linear(channels, channels)

    def forward(self, embedding: Tensor) -> Tensor:
        """Shape: (B, N, K, C) -> the same."""
        mixed = self.conv(self.norm(embedding).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return embedding + self.out(functional.silu(mixed))


class FullBandMixer(nn.Module):
    """All bands of a frame squeezed into one vector that is mixed along time and spread again.

    Squeezing to a few channels first makes the view of the whole spectrum almost free. A cue (lips) of the
    same width may be added to that vector. With heads, the vectors of two voices are attended to besides.
    """

    def __init__(
        self, channels: int, num_bands: int, squeezed: int, dilation: int, heads: int = 0, kernel: int = 3
    ) -> None:
        super().__init__()
        width = num_bands * squeezed
        self.num_bands, self.squeezed = num_bands, squeezed
        self.norm = nn.LayerNorm(channels)
        self.squeeze = nn.Linear(channels, squeezed)
        self.conv = nn.Conv1d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.gate = nn.Linear(width, width)
        self.attention = VoiceAttention(width, heads) if heads else None
        self.spread = nn.Linear(squeezed, channels)

    def forward(self, embedding: Tensor, cue: Tensor | None = None) -> Tensor:
        """Shape: (B, N, K, C), cue (B, N, H = K * squeezed) -> (B, N, K, C)."""
        frames = self.squeeze(self.norm(embedding)).flatten(2)
        if cue is not None:
            frames = frames + cue
        mixed = functional.silu(self.conv(frames.transpose(1, 2)).transpose(1, 2))
        mixed = mixed * self.gate(frames).sigmoid()
        if self.attention is not None:
            mixed = mixed + self.attention(frames)
        return embedding + self.spread(mixed.unflatten(2, (self.num_bands, self.squeezed)))


class FullBandRecurrence(nn.Module):
    """All bands of a frame squeezed into one vector, and a bidirectional LSTM along time over these vectors.

    The recurrence sees the whole recording at a cost that grows linearly with it, and is nearly free: it runs once a
    frame, not once a band. A cue (lips) of the vector's width may be added to it.
    """

    def __init__(self, channels: int, num_bands: int, squeezed: int, units: int) -> None:
        super().__init__()
        width = num_bands * squeezed
        self.num_bands, self.squeezed = num_bands, squeezed
        self.norm = nn.LayerNorm(channels)
        self.squeeze = nn.Linear(channels, squeezed)
        self.lstm = LSTM(width, units, batch_first=True, bidirectional=True)
        self.expand = nn.Linear(2 * units, width)
        self.spread = nn.Linear(squeezed, channels)

    def forward(self, embedding: Tensor, cue: Tensor | None = None) -> Tensor:
        """Shape: (B, N, K, C), cue (B, N, H = K * squeezed) -> (B, N, K, C)."""
        frames = self.squeeze(self.norm(embedding)).flatten(2)
        if cue is not None:
            frames = frames + cue
        frames = functional.silu(self.expand(self.lstm(frames)[0]))
        return embedding + self.spread(frames.unflatten(2, (self.num_bands, self.squeezed)))


class TimeFrequencyBlock(nn.Module):
    """Local mixing, then full-band mixing, both residual."""

    def __init__(
        self, channels: int, num_bands: int, squeezed: int, dilation: int, units: int = 0, heads: int = 0
    ) -> None:
        super().__init__()
        self.local = LocalMixer(channels, dilation)
        if units:
            self.full_band = FullBandRecurrence(channels, num_bands, squeezed, units)
        else:
            self.full_band = FullBandMixer(channels, num_bands, squeezed, dilation, heads)

    def begin_as_identity(self) -> None:
        """Let the block change nothing, as for one that is added to a trained separator."""
        for residual in (self.local.out, self.full_band.spread):
            nn.init.zeros_(residual.weight)
            nn.init.zeros_(residual.bias)

    def forward(self, embedding: Tensor, cue: Tensor | None = None) -> Tensor:
        """Shape: (B, N, K, C), cue (B, N, K * squeezed) -> (B, N, K, C)."""
        return self.full_band(self.local(embedding), cue)


class SpeakerExchange(nn.Module):
    """Each voice sees what the other one holds; symmetric, so that swapping the voices swaps the outputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.other = nn.Linear(channels, channels)

    def begin_as_identity(self) -> None:
        """Let the voices see nothing of each other, as between blocks added to a trained separator."""
        nn.init.zeros_(self.other.weight)
        nn.init.zeros_(self.other.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """Shape: (B, S=2, N, K, C) -> the same."""
        return embedding + self.other(self.norm(embedding).flip(1))
