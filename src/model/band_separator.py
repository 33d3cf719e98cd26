"""Band-split separator of two voices in one pass, cued by lips or by nothing.

STFT -> band split -> shared audio blocks -> lip cue per voice -> voice blocks with exchange -> complex mask
per voice under mixture consistency -> inverse STFT.

Axes: B batch, S = 2 voices, T samples, F video frames, D lip embedding, N STFT frames, Q bins, K bands,
C channels.
"""

import torch
from torch import Tensor, nn

from src.model.blocks.band_split import BandDecoder, BandEncoder, BandGather
from src.model.blocks.lip_fusion import LipEncoder
from src.model.blocks.stft import Stft
from src.model.blocks.time_frequency import SpeakerExchange, TimeFrequencyBlock

NUM_VOICES = 2


class LipCue(nn.Module):
    """Lip cue of one voice block: scale and shift of every channel, and a shift of the full-band vector."""

    def __init__(self, cue_channels: int, channels: int, full_band: int) -> None:
        super().__init__()
        self.scale_shift = nn.Linear(cue_channels, 2 * channels)
        self.full_band = nn.Linear(cue_channels, full_band)

    def forward(self, embedding: Tensor, cue: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: (B, N, K, C), cue (B, N, V) -> (B, N, K, C), (B, N, full_band)."""
        scale, shift = self.scale_shift(cue)[:, :, None].chunk(2, dim=-1)
        return embedding * (1 + scale) + shift, self.full_band(cue)


class BandSeparator(nn.Module):
    """Both voices of a mixture, each on its own; their sum is the mixture.

    Swapping the two speakers' lips swaps the two estimates exactly: the voices share every weight and differ
    in their cue alone. Without lips two learnt cues stand in for them and the order is arbitrary (train with
    permutation-invariant loss). Level-invariant: the mixture is scaled to unit RMS inside.

    Args:
        visual_dim: dimensions of the lip embedding, or 0 for an audio-only separator.
        num_bands, channels: K and C.
        shared_blocks, voice_blocks: number of blocks before and after the voices part.
        squeezed: channels a band keeps in the full-band vector.
        cue_channels: width of the lip cue.
        cue_dropout: dropout on the projected lip embedding in training.
        exchange: whether voices see each other between voice blocks.
        window, hop: STFT, in samples at 16 kHz.
        dilations: time dilation of the blocks, repeated as often as needed.
    """

    def __init__(
        self,
        *,
        visual_dim: int = 512,
        num_bands: int = 24,
        channels: int = 48,
        shared_blocks: int = 2,
        voice_blocks: int = 3,
        squeezed: int = 6,
        cue_channels: int = 64,
        cue_dropout: float = 0.1,
        exchange: bool = True,
        window: int = 512,
        hop: int = 256,
        dilations: tuple[int, ...] = (1, 2, 4),
    ) -> None:
        super().__init__()
        self.visual_dim = visual_dim
        self.stft = Stft(window, hop)
        gather = BandGather(self.stft.num_bins, num_bands)
        self.encoder = BandEncoder(gather, num_features=3, channels=channels)

        def blocks(number: int) -> nn.ModuleList:
            return nn.ModuleList(
                TimeFrequencyBlock(channels, num_bands, squeezed, dilations[i % len(dilations)])
                for i in range(number)
            )

        self.shared = blocks(shared_blocks)
        self.voices = blocks(voice_blocks)
        self.exchange = nn.ModuleList(
            SpeakerExchange(channels) for _ in range(voice_blocks if exchange else 0)
        )
        if visual_dim:
            self.lips = LipEncoder(visual_dim, cue_channels, cue_dropout)
        else:
            self.slots = nn.Parameter(torch.randn(NUM_VOICES, cue_channels))
        self.cues = nn.ModuleList(
            LipCue(cue_channels, channels, num_bands * squeezed) for _ in range(voice_blocks)
        )
        self.norm = nn.LayerNorm(channels)
        self.decoder = BandDecoder(gather, channels, num_values=2)

    def lips_used(self, visual: Tensor | None, visual_mask: Tensor | None, mix: Tensor) -> Tensor:
        """Which voices are cued by lips. Shape: (B, S) bool."""
        shape = (mix.shape[0], NUM_VOICES)
        if not self.visual_dim or visual is None or visual.shape[2] == 0:
            return mix.new_zeros(shape, dtype=torch.bool)
        return mix.new_ones(shape, dtype=torch.bool) if visual_mask is None else visual_mask

    def cue(self, visual: Tensor | None, used: Tensor, num_frames: int) -> Tensor:
        """Cue of every voice. Shape: visual (B, S, F, D), used (B, S) -> (B, S, N, V)."""
        if not self.visual_dim:
            return self.slots[None, :, None].expand(used.shape[0], -1, num_frames, -1)
        if visual is None or visual.shape[2] == 0:
            return self.lips.without_lips(used.shape[0], num_frames)
        return self.lips(visual, used, num_frames, self.stft.hop)

    @staticmethod
    def features(spectrum: Tensor) -> Tensor:
        """Compressed real and imaginary part and magnitude. Shape: complex (B, Q, N) -> (B, N, Q, 3)."""
        magnitude = spectrum.abs().clamp_min(1e-5)
        compressed = magnitude.pow(0.3)
        phase = spectrum / magnitude
        parts = torch.stack([phase.real * compressed, phase.imag * compressed, compressed], dim=-1)
        return parts.transpose(1, 2)

    def forward(
        self, mix: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None, **batch: object
    ) -> dict[str, Tensor]:
        """Separate a batch of mixtures.

        Shape: mix (B, T), visual (B, S, F, D) or None, visual_mask (B, S) bool or None (all lips present)
        -> {"estimates": (B, S, T), "visual_mask": (B, S) bool}. The mask returned tells which lips were used: none
        in an audio-only separator, whatever the batch held, so that loss and metrics know whether the order
        of the voices is given.

        Raises:
            ValueError: the lip embeddings are not `visual_dim` wide.
        """
        level = mix.square().mean(dim=-1, keepdim=True).add(1e-10).sqrt()
        with torch.autocast(mix.device.type, enabled=False):
            spectrum = self.stft((mix / level).float())
            features = self.features(spectrum)
        size, num_frames = features.shape[:2]
        embedding = self.encoder(features)
        for block in self.shared:
            embedding = block(embedding)
        used = self.lips_used(visual, visual_mask, mix)
        cue = self.cue(visual, used, num_frames).flatten(0, 1)
        embedding = embedding[:, None].expand(-1, NUM_VOICES, -1, -1, -1)
        for i, block in enumerate(self.voices):
            if self.exchange:
                embedding = self.exchange[i](embedding)
            cued, full_band = self.cues[i](embedding.flatten(0, 1), cue)
            embedding = block(cued, full_band).unflatten(0, (size, NUM_VOICES))
        values = self.decoder(self.norm(embedding).flatten(0, 1)).float().unflatten(0, (size, NUM_VOICES))
        # Half the mixture each, plus what one voice has and the other lacks: masks sum to one in every bin
        # (mixture consistency, Wisdom et al. 2019, eq. 7, with equal weights), and untrained estimates are halves.
        difference = (values - values.flip(1)) / 2
        masks = torch.view_as_complex(difference.contiguous()) + 0.5
        with torch.autocast(mix.device.type, enabled=False):
            estimates = self.stft.inverse(masks.transpose(-1, -2) * spectrum[:, None], mix.shape[-1])
        return {"estimates": estimates * level[:, None], "visual_mask": used}

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        total = sum(p.numel() for p in self.parameters())
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return f"{super().__str__()}\nAll parameters: {total:,}\nTrainable parameters: {trainable:,}"
