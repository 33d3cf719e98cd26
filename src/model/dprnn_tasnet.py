"""DPRNN-TasNet: masks over a learned basis, found by recurrent networks along and across chunks of frames.

Axes: B batch, S = 2 voices, T samples, N frames, E basis signals, C channels, G chunks, K frames of a chunk.
"""

from torch import Tensor, nn

from src.model.blocks.dual_path import DualPathBlock
from src.model.blocks.global_layer_norm import GlobalLayerNorm
from src.model.blocks.learned_filterbank import LearnedDecoder, LearnedEncoder
from src.model.blocks.mask_head import MaskHead
from src.model.blocks.segmentation import overlap_add, segment
from src.model.blocks.voices import NUM_VOICES, no_lips, summary, unit_level


class DPRNNTasNet(nn.Module):
    """Both voices of a mixture in one pass, in arbitrary order: train with permutation-invariant loss.

    The defaults are the paper's network (2.6 M parameters) with its longest window, 16 samples: shorter ones cost in
    proportion. The rule K ~ sqrt(2 N) makes both paths equally long; 2 s at 16 kHz are N = 4001 frames, hence K = 90.
    Level-invariant: the mixture is scaled to unit RMS inside.

    Args:
        basis: number of basis signals.
        window: length of a basis signal in samples.
        channels: C.
        hidden: units of each LSTM per direction.
        blocks: dual-path blocks.
        chunk: K, even.

    Raises:
        ValueError: the chunk has no half.

    Reference: Luo, Chen and Yoshioka, "Dual-path RNN: efficient long sequence modeling for time-domain
        single-channel speech separation", 2020.
    """

    def __init__(
        self,
        *,
        basis: int = 64,
        window: int = 16,
        channels: int = 64,
        hidden: int = 128,
        blocks: int = 6,
        chunk: int = 90,
    ) -> None:
        super().__init__()
        if chunk < 2 or chunk % 2:
            raise ValueError(f"model.chunk={chunk}: chunks overlap by half, take an even number of frames")
        self.chunk = chunk
        self.encoder = LearnedEncoder(basis, window)
        self.bottleneck = nn.Sequential(GlobalLayerNorm(basis), nn.Conv1d(basis, channels, 1))
        self.blocks = nn.Sequential(*(DualPathBlock(channels, hidden) for _ in range(blocks)))
        self.masks = MaskHead(channels, NUM_VOICES, basis)
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
        chunks = segment(self.bottleneck(weights).transpose(1, 2), self.chunk)
        features = overlap_add(self.blocks(chunks), weights.shape[-1])
        masks = self.masks(features.transpose(1, 2))
        estimates = self.decoder(masks * weights[:, None], mix.shape[-1])
        return {"estimates": estimates * level[:, None], "visual_mask": no_lips(mix)}

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        return summary(self)
