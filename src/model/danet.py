"""Deep attractor network: every time-frequency bin as a point in an embedding space, drawn to one point a voice.

Axes: B batch, S = 2 voices, T samples, N STFT frames, Q bins, E embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.model.blocks.anchored_attractor import AnchoredAttractors
from src.model.blocks.lstm import LSTM
from src.model.blocks.stft import Stft
from src.model.blocks.voices import no_lips, summary, unit_level

SALIENT_DB = 40.0


class DANet(nn.Module):
    """Both voices of a mixture in one pass, in arbitrary order: train with permutation-invariant loss.

    This is the anchored variant (ADANet): attractors come from learnt anchor points. The plain network takes them from
    the true assignment of bins in training and from k-means afterwards; the anchored one computes the same thing
    in both, needs no truth, and its gradient runs through what inference will do. Masks are softmax, so that the
    estimates sum to the mixture. Level-invariant: the mixture is scaled to unit RMS inside.

    The defaults are the paper's network (9.1 M parameters at its 129 bins for 8 kHz) with windows of 32 ms every 8 ms
    at 16 kHz.

    Args:
        hidden: units of each LSTM per direction.
        layers: LSTM layers.
        embedding_dim: E.
        anchors: number of anchor points, at least one a voice.
        window, hop: STFT, in samples.

    Reference: Luo, Chen and Mesgarani, "Speaker-independent speech separation with deep attractor network", 2018.
    """

    def __init__(
        self,
        *,
        hidden: int = 300,
        layers: int = 4,
        embedding_dim: int = 20,
        anchors: int = 6,
        window: int = 512,
        hop: int = 128,
    ) -> None:
        super().__init__()
        self.stft = Stft(window, hop)
        num_bins = self.stft.num_bins
        self.separator = LSTM(num_bins, hidden, num_layers=layers, batch_first=True, bidirectional=True)
        self.embed = nn.Linear(2 * hidden, num_bins * embedding_dim)
        self.embedding_dim = embedding_dim
        self.attractors = AnchoredAttractors(anchors, embedding_dim)

    @staticmethod
    def features(magnitude: Tensor) -> Tensor:
        """Log magnitude with zero mean and unit variance over an item. Shape: (B, N, Q) -> the same."""
        logarithm = magnitude.clamp_min(1e-3).log()
        return functional.layer_norm(logarithm, logarithm.shape[1:])

    @staticmethod
    def salient(magnitude: Tensor) -> Tensor:
        """1 in bins at most 40 dB under the loudest of their item, whose place in the embedding space means something,
        and 0 elsewhere. Shape: (B, N, Q) -> (B, N * Q)."""
        threshold = magnitude.amax(dim=(1, 2), keepdim=True) * 10 ** (-SALIENT_DB / 20)
        return (magnitude >= threshold).to(magnitude.dtype).flatten(1)

    def forward(
        self, mix: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None, **batch: object
    ) -> dict[str, Tensor]:
        """Separate a batch of mixtures.

        Shape: mix (B, T); lips are not looked at
        -> {"estimates": (B, S, T), "visual_mask": (B, S) bool, all false}.
        """
        scaled, level = unit_level(mix)
        with torch.autocast(mix.device.type, enabled=False):
            spectrum = self.stft(scaled.float())  # (B, Q, N)
            magnitude = spectrum.abs().transpose(1, 2)
            features = self.features(magnitude)
        embedding = self.embed(self.separator(features)[0]).float()
        with torch.autocast(mix.device.type, enabled=False):
            embedding = embedding.unflatten(-1, (-1, self.embedding_dim)).flatten(1, 2)  # (B, N * Q, E)
            attractors = self.attractors(embedding, self.salient(magnitude))
            masks = (attractors @ embedding.transpose(1, 2)).softmax(dim=1)
            masks = masks.unflatten(-1, magnitude.shape[1:]).transpose(2, 3)  # (B, S, Q, N)
            estimates = self.stft.inverse(masks * spectrum[:, None], mix.shape[-1])
        return {"estimates": estimates * level[:, None], "visual_mask": no_lips(mix)}

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        return summary(self)
