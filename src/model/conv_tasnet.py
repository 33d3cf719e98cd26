"""Conv-TasNet: masks over a learned basis, found by a temporal convolutional network.

`ConvTasNet` hears the mixture alone and gives both voices in one pass; `AVConvTasNet` extracts one voice per pass,
the one whose lips it is given, with both passes folded into the batch.

Axes: B batch, S = 2 voices, T samples, N frames, E basis signals, C channels, F video frames, D lip embedding,
V lip channels.
"""

import torch
from torch import Tensor, nn

from src.model.blocks.global_layer_norm import GlobalLayerNorm
from src.model.blocks.learned_filterbank import LearnedDecoder, LearnedEncoder
from src.model.blocks.lip_conv_stack import LipConvStack
from src.model.blocks.mask_head import MaskHead
from src.model.blocks.temporal_conv_net import TemporalConvNet
from src.model.blocks.voices import NUM_VOICES, lips_used, no_lips, summary, unit_level


class ConvTasNet(nn.Module):
    """Both voices of a mixture in one pass, in arbitrary order: train with permutation-invariant loss.

    The defaults are the paper's best non-causal configuration (5.1 M parameters); a window of 16 samples is 1 ms at
    16 kHz. Level-invariant: the mixture is scaled to unit RMS inside, which is also why there is no causal variant.

    Args:
        basis: number of basis signals (N in the paper).
        window: length of a basis signal in samples (L).
        channels: channels of the residual path (B).
        hidden: channels inside a block (H).
        skip: channels of the skip path (Sc).
        kernel: length of the depthwise convolutions (P).
        blocks: blocks a repeat (X).
        repeats: number of repeats (R).

    Reference: Luo and Mesgarani, "Conv-TasNet: surpassing ideal time-frequency magnitude masking for speech
        separation", 2019.
    """

    def __init__(
        self,
        *,
        basis: int = 512,
        window: int = 16,
        channels: int = 128,
        hidden: int = 512,
        skip: int = 128,
        kernel: int = 3,
        blocks: int = 8,
        repeats: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = LearnedEncoder(basis, window)
        self.bottleneck = nn.Sequential(GlobalLayerNorm(basis), nn.Conv1d(basis, channels, 1))
        self.separator = TemporalConvNet(
            channels=channels,
            hidden=hidden,
            skip=skip,
            kernel=kernel,
            blocks=blocks,
            repeats=repeats,
            ends=True,
        )
        self.masks = MaskHead(skip, NUM_VOICES, basis)
        self.decoder = LearnedDecoder(basis, window)

    def forward(
        self, mix: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None, **batch: object
    ) -> dict[str, Tensor]:
        """Separate a batch of mixtures.

        Shape: mix (B, T); lips are not looked at
        -> {"estimates": (B, S, T), "visual_mask": (B, S) bool, all false}.
        """
        scaled, level = unit_level(mix)
        weights = self.encoder(scaled)
        _, skips = self.separator(self.bottleneck(weights))
        estimates = self.decoder(self.masks(skips) * weights[:, None], mix.shape[-1])
        return {"estimates": estimates * level[:, None], "visual_mask": no_lips(mix)}

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        return summary(self)


class AVConvTasNet(nn.Module):
    """The voice of each pair of lips; both voices share every weight, so that swapping the lips swaps the estimates.

    The first repeats see the mixture alone, which both voices share; then the lips of a voice join by concatenation.
    Without lips, learnt embeddings stand in for them and the order is arbitrary. Level-invariant.

    Args:
        visual_dim: dimensions of the lip embedding.
        basis, window, channels, hidden, skip, kernel, blocks: as in `ConvTasNet`.
        audio_repeats, fused_repeats: repeats before and after the lips join.
        lip_channels: channels of the lip network.
        lip_blocks: its convolution blocks.

    Raises:
        ValueError: `visual_dim` is not positive.

    Reference: Wu et al., "Time domain audio visual speech separation", 2019; the audio part keeps the skip paths of
        Conv-TasNet.
    """

    def __init__(
        self,
        *,
        visual_dim: int = 512,
        basis: int = 512,
        window: int = 16,
        channels: int = 128,
        hidden: int = 512,
        skip: int = 128,
        kernel: int = 3,
        blocks: int = 8,
        audio_repeats: int = 1,
        fused_repeats: int = 2,
        lip_channels: int = 256,
        lip_blocks: int = 5,
    ) -> None:
        super().__init__()
        if visual_dim < 1:
            raise ValueError(f"model.visual_dim={visual_dim}: a model without lips is model=conv_tasnet")
        self.encoder = LearnedEncoder(basis, window)
        self.bottleneck = nn.Sequential(GlobalLayerNorm(basis), nn.Conv1d(basis, channels, 1))
        shape = {"channels": channels, "hidden": hidden, "skip": skip, "kernel": kernel, "blocks": blocks}
        self.audio = TemporalConvNet(**shape, repeats=audio_repeats, ends=False)
        self.lips = LipConvStack(visual_dim=visual_dim, channels=lip_channels, blocks=lip_blocks)
        self.fusion = nn.Conv1d(channels + lip_channels, channels, 1)
        self.fused = TemporalConvNet(**shape, repeats=fused_repeats, ends=True)
        self.masks = MaskHead(skip, 1, basis)
        self.decoder = LearnedDecoder(basis, window)

    def forward(
        self, mix: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None, **batch: object
    ) -> dict[str, Tensor]:
        """Separate a batch of mixtures.

        Shape: mix (B, T), visual (B, S, F, D) or None, visual_mask (B, S) bool or None (all lips present)
        -> {"estimates": (B, S, T), "visual_mask": (B, S) bool, which lips were used}.

        Raises:
            ValueError: the lip embeddings are not `visual_dim` wide.
        """
        scaled, level = unit_level(mix)
        weights = self.encoder(scaled)
        used = lips_used(visual, visual_mask, mix)
        cue = self.lips(visual, used, weights.shape[-1], self.encoder.hop)
        features, skips = (each_voice(part) for part in self.audio(self.bottleneck(weights)))
        fused = self.fusion(torch.cat([features, cue.flatten(0, 1).to(features.dtype)], dim=1))
        masks = self.masks(skips + self.fused(fused)[1]).view(-1, NUM_VOICES, *weights.shape[1:])
        estimates = self.decoder(masks * weights[:, None], mix.shape[-1])
        return {"estimates": estimates * level[:, None], "visual_mask": used}

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        return summary(self)


def each_voice(features: Tensor) -> Tensor:
    """The same features for either voice. Shape: (B, C, N) -> (B * S, C, N)."""
    return features.repeat_interleave(NUM_VOICES, dim=0)
