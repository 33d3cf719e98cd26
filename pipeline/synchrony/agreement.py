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


def frame_agreement(lips: Tensor, voices: Tensor) -> Tensor:
    """What every frame adds to the agreement of lips with a voice.

    Shape: (B, P, F), (B, P, F) -> (B, F), whose sum is the diagonal of `agreement`.
    """
    return (_unit(lips) * _unit(voices)).unflatten(1, lips.shape[1:]).sum(dim=1)


def _unit(features: Tensor) -> Tensor:
    moving = features - features.mean(dim=-1, keepdim=True)
    return functional.normalize(moving.flatten(1), dim=-1)


class AgreementLoss(nn.Module):
    """Cross-entropy of the right voice for each mouth, the right mouth for each voice, and the right offset.

    Once more the same for short windows, each against all windows of the batch. Those of the same clip are of the same
    face and voice at another time, so that what is said there has to be told from the picture.

    Args:
        reach: offsets tried to either side, in frames.
        offset_weight: of the offsets beside the matching.
        temperature: initial; agreement is divided by it. All three are learnt.
        window: length of the windows in frames.
        window_weight: of the windows beside the matching.

    Raises:
        ValueError: a window has no frames; later, it is longer than the clips.
    """

    def __init__(
        self, *, reach: int, offset_weight: float, temperature: float, window: int, window_weight: float
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"loss.window={window}: must be 1 frame or more")
        self.reach, self.offset_weight = reach, offset_weight
        self.window, self.window_weight = window, window_weight
        self.sharpness = nn.Parameter(torch.full((3,), 1 / temperature).log())
        # A voice one frame early or late is nearly right: the frames of camera and microphone are not in step.
        target = torch.zeros(2 * reach + 1)
        target[reach - 1 : reach + 2] = torch.tensor([0.1, 0.8, 0.1])
        self.register_buffer("target", target, persistent=False)

    def forward(self, lips: Tensor, voices: Tensor) -> dict[str, Tensor]:
        """Shape: (B, P, F), (B, P, F) -> losses `loss`, `matching`, `offset`, `windows`."""
        if lips.shape[-1] < self.window:
            raise ValueError(
                f"loss.window={self.window} is longer than the {lips.shape[-1]} frames of a clip: raise batches.frames"
            )
        matching_scale, offset_scale, windows_scale = self.sharpness.clamp(max=4.6).exp()
        matching = _matching(agreement(lips, voices) * matching_scale)
        offsets = offset_agreement(lips, voices, self.reach) * offset_scale
        offset = functional.cross_entropy(offsets, self.target.expand_as(offsets))
        short = (windows(features, self.window) for features in (lips, voices))
        in_windows = _matching(agreement(*short) * windows_scale)
        loss = matching + self.offset_weight * offset + self.window_weight * in_windows
        return {"loss": loss, "matching": matching, "offset": offset, "windows": in_windows}


def windows(features: Tensor, length: int) -> Tensor:
    """Windows beside each other; what is left over at the ends is left out.

    Shape: (B, P, F) -> (B F // length, P, length).
    """
    left_over = features.shape[-1] % length
    whole = features[..., left_over // 2 : features.shape[-1] - (left_over - left_over // 2)]
    return whole.unflatten(-1, (-1, length)).transpose(1, 2).flatten(0, 1)


def _matching(scores: Tensor) -> Tensor:
    """Cross-entropy of a square of scores whose diagonal is right, along rows and columns."""
    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
