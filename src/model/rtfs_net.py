"""RTFS-Net: recurrent time-frequency separation of the voice of one pair of lips, one pass a voice.

STFT -> encoder -> RTFS block -> fusion with the lips' block -> RTFS blocks, same weights -> complex mask on the
encoder's output -> decoder -> inverse STFT.

Axes: B batch (times voices inside), S = 2 voices, T samples, F video frames, D lip embedding, C channels,
N STFT frames, Q frequency bins.

Reference: Pegg, Li and Hu 2023, "RTFS-Net: recurrent time-frequency modelling for efficient audio-visual speech
separation", arXiv 2309.17189.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.attention_reconstruction import CompressReconstruct
from src.model.blocks.cross_attention_fusion import CrossAttentionFusion
from src.model.blocks.frame_attention import FrameAttention
from src.model.blocks.global_attention import GlobalAttention
from src.model.blocks.global_layer_norm import GlobalLayerNorm
from src.model.blocks.lip_substitutes import LipSubstitutes
from src.model.blocks.spectral_source_separation import SpectralSourceSeparation, SpectrumDecoder
from src.model.blocks.stft import Stft
from src.model.blocks.time_frequency_path import DualPath
from src.model.blocks.voice_passes import pass_per_voice
from src.model.blocks.voices import summary

KERNEL = 4
"""Of the depthwise convolutions over time and frequency."""


class RtfsNet(nn.Module):
    """Each voice by its lips, in a pass of its own. The estimates need not sum to the mixture.

    Swapping the two speakers' lips swaps the two estimates. Absent lips are replaced by learnt embeddings
    (`LipSubstitutes`; not in the paper). Level-invariant: the mixture is scaled to unit RMS inside.

    R counts every pass through the RTFS block, the one before the fusion too: so the published 21.9, 30.5 and 56.4
    GMACs a voice of 2 s come about.

    Args:
        visual_dim: D.
        blocks: R.
        channels: C of the encoder.
        compressed: channels inside RTFS blocks and the video block.
        scales: q, resolutions of an RTFS block.
        rnn_hidden, rnn_layers, rnn_window: simple recurrent units of the dual path and the steps unfolded for them.
        heads, key_channels: self-attention between frames; the fusion has as many heads.
        video_scales, video_heads: resolutions and attention heads of the video block.
        window, hop: STFT, in samples at 16 kHz.

    Raises:
        ValueError: fewer blocks than two, or too few bins for the recurrence along frequency.
    """

    def __init__(
        self,
        *,
        visual_dim: int = 512,
        blocks: int = 4,
        channels: int = 256,
        compressed: int = 64,
        scales: int = 2,
        rnn_hidden: int = 32,
        rnn_layers: int = 4,
        rnn_window: int = 8,
        heads: int = 4,
        key_channels: int = 4,
        video_scales: int = 4,
        video_heads: int = 8,
        window: int = 256,
        hop: int = 128,
    ) -> None:
        super().__init__()
        if blocks < 2:
            raise ValueError(
                f"model: blocks={blocks}: one pass comes before the fusion, at least one after it"
            )
        self.blocks = blocks
        self.stft = Stft(window, hop)
        self.shortest = rnn_window * 2 ** (scales - 1) * hop
        coarse_bins = self.stft.num_bins >> (scales - 1)
        if coarse_bins < rnn_window:
            raise ValueError(
                f"model: window={window} leaves {coarse_bins} bins at the coarsest of scales={scales}, rnn_window="
                f"{rnn_window} needs as many: enlarge the window or lower scales"
            )
        self.encoder = nn.Sequential(
            nn.Conv2d(2, channels, 3, padding=1, bias=False),
            GlobalLayerNorm(channels),
            nn.ReLU(inplace=True),
        )
        self.bottleneck = nn.Conv2d(channels, channels, 1, bias=False)
        core = nn.Sequential(
            DualPath(compressed, hidden=rnn_hidden, layers=rnn_layers, window=rnn_window),
            FrameAttention(compressed, coarse_bins, heads=heads, key_channels=key_channels),
        )
        self.audio = CompressReconstruct(
            channels, compressed, scales=scales, kernel=KERNEL, dims=2, core=core
        )
        self.lips = LipSubstitutes(visual_dim)
        attention = GlobalAttention(compressed, heads=video_heads)
        self.video = CompressReconstruct(
            visual_dim, compressed, scales=video_scales, kernel=3, dims=1, core=attention
        )
        self.fusion = CrossAttentionFusion(channels, visual_dim, heads=heads, hop=hop)
        self.mask = SpectralSourceSeparation(channels)
        self.decoder = SpectrumDecoder(channels)

    def extract(self, mix: Tensor, lips: Tensor) -> Tensor:
        """One voice. Shape: mix (B, T), lips (B, F, D) -> (B, T)."""
        length = mix.shape[-1]
        mix = functional.pad(mix, (0, max(0, self.shortest - length)))
        with torch.autocast(mix.device.type, enabled=False):
            spectrum = torch.view_as_real(self.stft(mix.float())).permute(0, 3, 2, 1)
        encoded = self.encoder(spectrum)
        fused = self.fusion(self.audio(self.bottleneck(encoded)), self.video(lips.transpose(1, 2)))
        features = self.audio(fused)
        for _ in range(self.blocks - 2):
            # In place: nothing else holds these features, and touching a new map of this size costs more than the sum
            features = self.audio(features.add_(fused))
        separated = self.decoder(*self.mask(features, encoded)).float()
        with torch.autocast(mix.device.type, enabled=False):
            spectrum = torch.view_as_complex(separated.permute(0, 3, 2, 1).contiguous())
            return self.stft.inverse(spectrum, mix.shape[-1])[..., :length]

    def forward(
        self, mix: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None, **batch: object
    ) -> dict[str, Tensor]:
        """Separate a batch of mixtures.

        Shape: mix (B, T), visual (B, S, F, D) or None, visual_mask (B, S) bool or None (all lips present)
        -> {"estimates": (B, S, T), "visual_mask": (B, S) bool, which lips were used}.

        Raises:
            ValueError: the lip embeddings are not `visual_dim` wide.
        """
        lips, used = self.lips(visual, visual_mask, mix)
        return {"estimates": pass_per_voice(self.extract, mix, lips), "visual_mask": used}

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        return summary(self)
