"""CTCNet: recurrent audio and video sub-networks that a fusion ties together cycle by cycle, one pass a voice.

Convolutional encoder -> cycles of both sub-networks with fusion -> cycles of the audio sub-network alone -> mask on the
encoder's output -> decoder.

Axes: B batch (times voices inside), S = 2 voices, T samples, F video frames, D lip embedding, C channels, N frames.

Reference: Li et al. 2022, "An audio-visual speech separation model inspired by cortico-thalamo-cortical circuits",
arXiv 2212.10744.
"""

from torch import Tensor, nn

from src.model.blocks.fully_recurrent import FullyRecurrentBlock
from src.model.blocks.global_layer_norm import GlobalLayerNorm
from src.model.blocks.lip_substitutes import LipSubstitutes
from src.model.blocks.thalamic_fusion import ThalamicFusion
from src.model.blocks.voice_passes import pass_per_voice
from src.model.blocks.voices import summary


class CtcNet(nn.Module):
    """Each voice by its lips, in a pass of its own. The estimates need not sum to the mixture.

    Swapping the two speakers' lips swaps the two estimates. Absent lips are replaced by learnt embeddings
    (`LipSubstitutes`; not in the paper). Level-invariant: the mixture is scaled to unit RMS inside.

    Sub-networks share their weights over the cycles; each fusion has its own.

    Args:
        visual_dim: D.
        fusion_cycles, audio_cycles: cycles of both sub-networks, then of the audio sub-network alone.
        channels: C of the encoder and of the audio sub-network.
        video_channels: of the video sub-network.
        stages, video_stages: resolutions of the sub-networks.
        block_kernel: depthwise convolutions of the audio sub-network, `video_kernel` those of the video one; odd.
        kernel, stride: of encoder and decoder, in samples at 16 kHz; the kernel is odd and longer than the stride.

    Raises:
        ValueError: no cycle fuses, or the kernel does not cover the stride.
    """

    def __init__(
        self,
        *,
        visual_dim: int = 512,
        fusion_cycles: int = 3,
        audio_cycles: int = 13,
        channels: int = 512,
        video_channels: int = 64,
        stages: int = 5,
        video_stages: int = 5,
        block_kernel: int = 5,
        video_kernel: int = 3,
        kernel: int = 21,
        stride: int = 10,
    ) -> None:
        super().__init__()
        if fusion_cycles < 1:
            raise ValueError(
                f"model: fusion_cycles={fusion_cycles}: the lips cue the voice in one cycle at least"
            )
        if kernel % 2 == 0 or kernel <= stride:
            raise ValueError(
                f"model: kernel={kernel} must be odd and longer than stride={stride}, or frames leave samples out"
            )
        self.audio_cycles = audio_cycles
        self.encoder = nn.Conv1d(1, channels, kernel, stride, kernel // 2, bias=False)
        self.bottleneck = nn.Sequential(GlobalLayerNorm(channels), nn.Conv1d(channels, channels, 1))
        self.lips = LipSubstitutes(visual_dim)
        self.video_bottleneck = nn.Conv1d(visual_dim, video_channels, 1)
        self.audio = FullyRecurrentBlock(channels, channels, stages=stages, kernel=block_kernel)
        self.video = FullyRecurrentBlock(
            video_channels, video_channels, stages=video_stages, kernel=video_kernel
        )
        self.fusions = nn.ModuleList(
            ThalamicFusion(channels, video_channels, hop=stride, to_video=cycle < fusion_cycles - 1)
            for cycle in range(fusion_cycles)
        )
        self.mask = nn.Sequential(nn.PReLU(channels), nn.Conv1d(channels, channels, 1), nn.ReLU())
        self.decoder = nn.ConvTranspose1d(
            channels, 1, kernel, stride, kernel // 2, output_padding=stride - 1, bias=False
        )

    def extract(self, mix: Tensor, lips: Tensor) -> Tensor:
        """One voice. Shape: mix (B, T), lips (B, F, D) -> (B, T)."""
        encoded = self.encoder(mix[:, None])
        audio = heard = self.bottleneck(encoded)
        video = seen = self.video_bottleneck(lips.transpose(1, 2))
        for cycle, fusion in enumerate(self.fusions):
            if cycle > 0:
                audio, video = audio + heard, video + seen
            audio, video = fusion(self.audio(audio), self.video(video))
        for _ in range(self.audio_cycles):
            audio = self.audio(audio + heard)
        estimate = self.decoder(self.mask(audio) * encoded)[:, 0]
        return estimate[:, : mix.shape[-1]].float()

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
