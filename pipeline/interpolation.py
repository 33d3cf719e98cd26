"""Values between frames and frames that come later, along time."""

import torch
from torch import Tensor


def between_frames(frames: Tensor, places: Tensor, dim: int = 0) -> Tensor:
    """Linear interpolation of frames, the first and the last one held beyond the ends.

    Args:
        frames: F of them along `dim`, of any further shape.
        places: (N,), in frames: 0 is the first one, 1.5 lies between the second and the third.
        dim: axis of the frames, counted from the front.

    Returns:
        N frames along `dim`, in floating point.
    """
    last = frames.shape[dim] - 1
    places = places.clamp(0, last)
    left = places.floor().long()
    kind = frames.dtype if frames.is_floating_point() else torch.float32
    share = (places - left).to(kind).reshape(-1, *[1] * (frames.dim() - dim - 1))
    right = (left + 1).clamp(max=last)
    return frames.index_select(dim, left) * (1 - share) + frames.index_select(dim, right) * share


def late(frames: Tensor, lag: int, dim: int = 0) -> Tensor:
    """Frames that come `lag` frames later, or earlier where it is negative; the first or the last one is held.

    Args:
        frames: F of them along `dim`, of any further shape, and any type.
        lag: whole frames.
        dim: axis of the frames.

    Returns:
        As many frames, in a tensor of its own.
    """
    num_frames = frames.shape[dim]
    places = torch.arange(num_frames, device=frames.device) - lag
    return frames.index_select(dim, places.clamp(0, max(0, num_frames - 1)))
