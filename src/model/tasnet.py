"""TasNet: masks over a learned basis, found by a deep BLSTM.

Axes: B batch, S = 2 voices, T samples, N segments, L samples of a segment, E basis signals.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.lstm import LSTM
from src.model.blocks.voices import NUM_VOICES, no_lips, summary, unit_level


class GatedEncoder(nn.Module):
    """Nonnegative weights of the basis: a rectified analysis under a sigmoid gate.

    Reference: Luo and Mesgarani, "TasNet", 2018, mixture weights by a gated convolution.
    """

    def __init__(self, basis: int, segment: int) -> None:
        super().__init__()
        self.analysis = nn.Linear(segment, basis, bias=False)
        self.gate = nn.Linear(segment, basis, bias=False)

    def forward(self, segments: Tensor) -> Tensor:
        """Shape: (B, N, L) -> (B, N, E)."""
        return self.analysis(segments).relu() * self.gate(segments).sigmoid()


class DeepBLSTM(nn.Module):
    """BLSTM layers with an identity skip over every two of them, starting from the second.

    Args:
        inputs: width of the input.
        hidden: units per direction.
        layers: an even number, so that the skips come out.

    Raises:
        ValueError: an odd number of layers, or none.
    """

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        if layers < 2 or layers % 2:
            raise ValueError(f"model.layers={layers}: skips span two layers, take an even number")
        self.pairs = nn.ModuleList(
            LSTM(2 * hidden if i else inputs, hidden, num_layers=2, batch_first=True, bidirectional=True)
            for i in range(layers // 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (B, N, inputs) -> (B, N, 2 * hidden)."""
        for i, pair in enumerate(self.pairs):
            mixed = pair(features)[0]
            features = features + mixed if i else mixed
        return features


class TasNet(nn.Module):
    """Both voices of a mixture in one pass, in arbitrary order: train with permutation-invariant loss.

    Segments do not overlap; each has unit norm while it is encoded and gets its norm back when it is decoded. The masks
    of a basis signal sum to one. The defaults are the paper's non-causal network; 80 samples are 5 ms at 16 kHz.
    Level-invariant: the mixture is scaled to unit RMS inside.

    Args:
        basis: number of basis signals.
        segment: length of a segment in samples.
        hidden: units of each LSTM per direction.
        layers: LSTM layers, an even number.

    Reference: Luo and Mesgarani, "TasNet: time-domain audio separation network for real-time, single-channel speech
        separation", 2018.
    """

    def __init__(self, *, basis: int = 500, segment: int = 80, hidden: int = 500, layers: int = 4) -> None:
        super().__init__()
        self.segment = segment
        self.encoder = GatedEncoder(basis, segment)
        self.norm = nn.LayerNorm(basis)
        self.separator = DeepBLSTM(basis, hidden, layers)
        self.masks = nn.Linear(2 * hidden, NUM_VOICES * basis)
        self.decoder = nn.Linear(basis, segment, bias=False)

    def forward(
        self, mix: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None, **batch: object
    ) -> dict[str, Tensor]:
        """Separate a batch of mixtures.

        Shape: mix (B, T); lips are not looked at
        -> {"estimates": (B, S, T), "visual_mask": (B, S) bool, all false}.
        """
        scaled, level = unit_level(mix)
        with torch.autocast(mix.device.type, enabled=False):
            padded = functional.pad(scaled.float(), (0, -mix.shape[-1] % self.segment))
            segments = padded.unflatten(-1, (-1, self.segment))
            norm = segments.square().sum(dim=-1, keepdim=True).add(1e-8).sqrt()
            weights = self.encoder(segments / norm)
        features = self.separator(self.norm(weights))
        masks = self.masks(features).float().unflatten(-1, (NUM_VOICES, -1)).softmax(dim=-2)
        with torch.autocast(mix.device.type, enabled=False):
            decoded = self.decoder(masks * weights[:, :, None]) * norm[:, :, None]  # (B, N, S, L)
        estimates = decoded.transpose(1, 2).flatten(2)[..., : mix.shape[-1]]
        return {"estimates": estimates * level[:, None], "visual_mask": no_lips(mix)}

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        return summary(self)
