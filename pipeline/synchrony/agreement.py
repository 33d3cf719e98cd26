"""How well lips and voices agree, and the loss that makes those agree that belong together.

Axes: B clips, P dimensions, F video frames, L offsets.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def agreement(lips: Tensor, voices: Tensor) -> Tensor:
    """Cosine of what changes in both, over all frames and dimensions.

    Means over time, which tell faces and voices but not speech, are taken out.

    Shape: (B1, P, F), (B2, P, F) -> (B1, B2) in -1..1.
    """
    return _unit(lips) @ _unit(voices).T


def offset_agreement(lips: Tensor, voices: Tensor, reach: int) -> Tensor:
    """Agreement of the middle of the lips with the voice from `reach` frames earlier to as many later.

    Shape: (B, P, F), (B, P, F) -> (B, L = 2 reach + 1).
    """
    middle = _unit(lips[..., reach : lips.shape[-1] - reach])
    windows = voices.unfold(-1, lips.shape[-1] - 2 * reach, 1).permute(0, 2, 1, 3)  # (B, L, P, F - 2 reach)
    return torch.einsum("bd,bld->bl", middle, _unit(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]))


def overlap_agreement(lips: Tensor, voices: Tensor, reach: int) -> Tensor:
    """Agreement of lips and voice over all that overlaps, the voice from `reach` frames earlier to as many later.

    Finds the offset more surely than `offset_agreement`, which compares the same frames of the lips at every offset
    and so is fit to be trained with.

    Shape: (B, P, F), (B, P, F) -> (B, L = 2 reach + 1), each out of F - |offset| frames.
    """
    num_frames = lips.shape[-1]
    agreements = []
    for offset in range(-reach, reach + 1):
        early, late = max(0, -offset), max(0, offset)
        mouth = _unit(lips[..., early : num_frames - late])
        voice = _unit(voices[..., late : num_frames - early])
        agreements.append((mouth * voice).sum(dim=1))
    return torch.stack(agreements, dim=1)


def _unit(features: Tensor) -> Tensor:
    moving = features - features.mean(dim=-1, keepdim=True)
    return functional.normalize(moving.flatten(1), dim=-1)


class AgreementLoss(nn.Module):
    """Cross-entropy of the right voice for each mouth, the right mouth for each voice, and the right offset.

    Args:
        reach: offsets tried to either side, in frames.
        offset_weight: of the offsets beside the matching.
        temperature: initial; agreement is divided by it. Both are learnt.
    """

    def __init__(self, *, reach: int, offset_weight: float, temperature: float) -> None:
        super().__init__()
        self.reach, self.offset_weight = reach, offset_weight
        self.sharpness = nn.Parameter(torch.full((2,), 1 / temperature).log())
        # A voice one frame early or late is nearly right: the frames of camera and microphone are not in step.
        target = torch.zeros(2 * reach + 1)
        target[reach - 1 : reach + 2] = torch.tensor([0.1, 0.8, 0.1])
        self.register_buffer("target", target, persistent=False)

    def forward(self, lips: Tensor, voices: Tensor) -> dict[str, Tensor]:
        """Shape: (B, P, F), (B, P, F) -> losses `loss`, `matching`, `offset`."""
        matching_scale, offset_scale = self.sharpness.clamp(max=4.6).exp()
        scores = agreement(lips, voices) * matching_scale
        own = torch.arange(len(lips), device=lips.device)
        matching = (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
        offsets = offset_agreement(lips, voices, self.reach) * offset_scale
        offset = functional.cross_entropy(offsets, self.target.expand_as(offsets))
        return {"loss": matching + self.offset_weight * offset, "matching": matching, "offset": offset}
