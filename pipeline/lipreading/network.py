"""The whole lip reader: stem, per-frame trunk, temporal network, word classifier (where it reads words).

Axes: B clips, T video frames (25 per second), D embedding, C temporal channels, K words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.lipreading.stem import STEM_CONTEXT_FRAMES

NUM_WORDS = 500  # LRW's words in alphabetical order
FRAME_SIZE = 88  # pixels; the ShuffleNet trunk pools exactly the 3x3 map this leads to


class TemporalClassifier(nn.Module):
    """The temporal trunk under the name its checkpoints use, and the linear layer behind it.

    Args:
        trunk: (B, D, T) -> (B, C, T).
        trunk_key: its name in checkpoints.
        num_words: K; 0 for a network that reads none.
    """

    def __init__(self, trunk: nn.Module, *, trunk_key: str, num_words: int = NUM_WORDS) -> None:
        super().__init__()
        self.trunk_key = trunk_key
        self.add_module(trunk_key, trunk)
        self.tcn_output = nn.Linear(trunk.out_channels, num_words) if num_words else None

    @property
    def trunk(self) -> nn.Module:
        return self.get_submodule(self.trunk_key)

    def classify(self, trunk: Tensor, lengths: Tensor) -> Tensor:
        """Mean over each clip's valid frames, then the linear layer.

        Shape:
            trunk (B, C, T), lengths (B,) frames -> (B, K) scores, no softmax
        """
        valid = torch.arange(trunk.shape[-1], device=trunk.device) < lengths[:, None]
        pooled = (trunk * valid[:, None]).sum(dim=-1) / lengths[:, None].to(trunk.dtype)
        return self.tcn_output(pooled)


class LipReader(nn.Module):
    """A word-level lip-reading network.

    Submodule names are those of the published checkpoints, so their state dicts load as they are.

    Attributes:
        name: the registry's name.
        embedding_dim: D of `frontend` (without the boundary column).
        trunk_dim: C of `temporal`.
        needs_boundary: the temporal part takes one extra channel, 1.0 on the frames of the word.
        context_frames: what `temporal` sees on each side of a frame; None when it sees the whole clip.

    Reference:
        Ma et al., "Training strategies for improved lip-reading", 2022;
        Ma et al., "Towards practical lipreading with distilled and efficient models", 2021.
    """

    def __init__(
        self,
        *,
        name: str,
        stem: nn.Module,
        frame_trunk: nn.Module,
        temporal: TemporalClassifier,
        needs_boundary: bool,
    ) -> None:
        super().__init__()
        self.trunk = frame_trunk
        self.frontend3D = stem
        self.tcn = temporal
        self.name = name
        self.embedding_dim: int = frame_trunk.out_channels
        self.trunk_dim: int = temporal.trunk.out_channels
        self.context_frames: int | None = temporal.trunk.context_frames
        self.needs_boundary = needs_boundary
        self.frozen = False

    def freeze(self) -> "LipReader":
        """Makes this a fixed feature extractor for good: no gradients, and `train()` leaves it in eval mode.

        A parent's `train()` reaches every submodule; without this, batch norm would silently go back to
        batch statistics and drift its running ones.
        """
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> "LipReader":
        return super().train(mode and not self.frozen)

    def frontend(self, x: Tensor, *, max_frames: int = 256) -> Tensor:
        """Embeds every frame, without the temporal part.

        In eval mode long inputs are worked off in windows along time, with the stem's context on both
        sides: the result is that of the whole clip, the memory is bounded.

        Args:
            x: (B, 1, T, 88, 88), normalised pictures.
            max_frames: frames (over all clips) in flight at once; memory only, not the result.

        Shape:
            (B, 1, T, 88, 88) -> (B, T, D)

        Raises:
            ValueError: `x` has another shape or no frames.
        """
        self._check_pictures(x)
        self._stay_frozen()
        num_frames = x.shape[2]
        # Batch statistics in training mode are those of the whole batch: no windows there.
        window = num_frames if self.training else max(1, max_frames // x.shape[0])
        pieces = []
        for start in range(0, num_frames, window):
            stop = min(start + window, num_frames)
            left = max(0, start - STEM_CONTEXT_FRAMES)
            piece = self.frontend3D(x[:, :, left : stop + STEM_CONTEXT_FRAMES])  # (B, C, t, 22, 22)
            piece = piece[:, :, start - left : stop - left].transpose(1, 2)  # (B, t, C, 22, 22)
            pieces.append(self.trunk(piece.flatten(0, 1)).unflatten(0, piece.shape[:2]))  # (B, t, D)
        return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]

    def temporal(self, embedding: Tensor, boundaries: Tensor | None = None) -> Tensor:
        """Runs the temporal trunk on frame embeddings.

        Padding frames pass like any others and are seen by their neighbours: run clips of equal length
        together where a clip's result must not depend on its batch.

        Args:
            embedding: (B, T, D) from `frontend`.
            boundaries: (B, T, 1), 1.0 on the word's frames; for the boundary network, and only for it.

        Shape:
            (B, T, D) -> (B, C, T)

        Raises:
            ValueError: boundaries absent where needed, given where not, or not of shape (B, T, 1).
        """
        self._stay_frozen()
        return self.tcn.trunk(self._with_boundary(embedding, boundaries).transpose(1, 2))

    def forward(
        self,
        x: Tensor,
        lengths: Sequence[int] | Tensor | None = None,
        boundaries: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Reads words off clips.

        Args:
            x: (B, 1, T, 88, 88), normalised pictures, shorter clips padded at the end with zeros.
            lengths: (B,) valid frames per clip; all T when left out. Only the final mean looks at them.
            boundaries: (B, T, 1), see `temporal`.

        Returns:
            logits (B, K; absent where the network reads no words), embedding (B, T, D; one column more with
            boundaries), trunk (B, C, T).

        Raises:
            ValueError: shapes, lengths or boundaries do not fit.
        """
        self._check_pictures(x)
        num_clips, num_frames = x.shape[0], x.shape[2]
        lengths = torch.as_tensor([num_frames] * num_clips if lengths is None else lengths, device=x.device)
        if lengths.shape != (num_clips,) or lengths.min() < 1 or lengths.max() > num_frames:
            raise ValueError(
                f"{self.name}: lengths {lengths.tolist()} for {num_clips} clips of {num_frames} frames; "
                "expected one value per clip between 1 and the number of frames"
            )
        embedding = self._with_boundary(self.frontend(x), boundaries)
        trunk = self.tcn.trunk(embedding.transpose(1, 2))
        outputs = {"embedding": embedding, "trunk": trunk}
        if self.tcn.tcn_output is not None:
            outputs["logits"] = self.tcn.classify(trunk, lengths)
        return outputs

    def _check_pictures(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != 1 or x.shape[3:] != (FRAME_SIZE, FRAME_SIZE) or 0 in x.shape:
            raise ValueError(
                f"{self.name}: input of shape {tuple(x.shape)}; expected (clips, 1, frames, {FRAME_SIZE}, "
                f"{FRAME_SIZE}) with at least one frame (centre-crop and normalise the pictures first)"
            )

    def _with_boundary(self, embedding: Tensor, boundaries: Tensor | None) -> Tensor:
        if self.needs_boundary != (boundaries is not None):
            state = "needs" if self.needs_boundary else "takes no"
            raise ValueError(
                f"{self.name} {state} boundaries (1.0 on the word's frames, shape (clips, frames, 1))"
            )
        if boundaries is None:
            return embedding
        if boundaries.shape != (*embedding.shape[:2], 1):
            raise ValueError(
                f"{self.name}: boundaries of shape {tuple(boundaries.shape)}, "
                f"expected {(*embedding.shape[:2], 1)}"
            )
        return torch.cat([embedding, boundaries.to(embedding.dtype)], dim=-1)

    def _stay_frozen(self) -> None:
        # `train()` called on a submodule, or on every module of a tree, bypasses the override above.
        if self.frozen and any(module.training for module in self.modules()):
            self.eval()
