"""Video that falters, lags, or is gone."""

from collections.abc import Sequence

import torch

from pipeline.draw import chance, checked_probability, checked_range, integer
from pipeline.interpolation import late


class FrameDrop:
    """Freezes the lips for some frames, as dropped frames of a video do.

    Every lost frame is replaced by the last one before it (those at the very start by the first that is left). Frames
    are lost in runs: a two-state chain whose long-run share of lost frames is ``share``.

    Args:
        p: probability that an item is changed. Both speakers then lose frames, each their own.
        share: expected share of frames lost.
        run_frames: mean length of a run of lost frames.

    Raises:
        ValueError: an option has no possible value.
    """

    def __init__(self, p: float = 0.3, share: float = 0.2, run_frames: float = 4.0) -> None:
        self._p = checked_probability("p", p)
        if not 0 < share < 1 or run_frames < 1:
            raise ValueError(f"share={share}, run_frames={run_frames}: must lie in 0..1, and be at least 1")
        self._share = share
        self._stay = 1 - 1 / run_frames  # from lost to lost
        self._enter = share / ((1 - share) * run_frames)  # from kept to lost
        if self._enter > 1:
            raise ValueError(
                f"share={share} cannot be reached with runs of {run_frames} frames; lengthen run_frames"
            )

    def __call__(self, item: dict) -> dict:
        """Return the item with frames of ``visual`` (S, F, D) held; without lips as it is."""
        if "visual" not in item or not chance(self._p):
            return item
        num_speakers, num_frames = item["visual"].shape[:2]
        source = torch.stack([self._sources_of_frames(num_frames) for _ in range(num_speakers)])
        return {**item, "visual": item["visual"].gather(1, source[..., None].expand_as(item["visual"]))}

    def _sources_of_frames(self, num_frames: int) -> torch.Tensor:
        """Which frame is shown in place of each, (F,)."""
        draws = torch.rand(num_frames).tolist()
        lost = []
        for draw in draws:
            share = self._share if not lost else self._stay if lost[-1] else self._enter
            lost.append(draw < share)
        first_kept = lost.index(False) if False in lost else 0
        shown, current = [], first_kept
        for number, is_lost in enumerate(lost):
            current = current if is_lost else number
            shown.append(current)
        return torch.tensor(shown)


class FrameShift:
    """Moves lips against the voice by whole frames, each speaker's on their own; edge frames are held.

    Cameras and microphones are rarely in step to the frame, and a separator that was trained on one recording chain
    should not depend on its lag.

    Args:
        p: probability that an item is changed.
        frames: earliest and latest shift; negative ones show lips earlier than they moved.

    Raises:
        ValueError: an option has no possible value.
    """

    def __init__(self, p: float = 0.5, frames: Sequence[int] = (-1, 1)) -> None:
        self._p = checked_probability("p", p)
        self._first, self._last = (int(bound) for bound in checked_range("frames", frames))

    def __call__(self, item: dict) -> dict:
        """Return the item with ``visual`` (S, F, D) shifted along F; without lips as it is."""
        if "visual" not in item or not chance(self._p):
            return item
        shifted = []
        for lips in item["visual"]:
            shift = self._first + integer(self._last - self._first + 1)
            shifted.append(late(lips, shift))
        return {**item, "visual": torch.stack(shifted)}


class StreamDrop:
    """Takes the lips of a speaker away altogether: zeros, and False in the mask.

    Args:
        p: probability that an item loses the lips of one speaker, of two that have them. The last lips are never
            taken by this: without any, which voice is whose cannot be told.
        p_both: probability that an item loses all lips; only for losses that settle the order of such items.

    Raises:
        ValueError: an option has no possible value.
    """

    def __init__(self, p: float = 0.2, p_both: float = 0.0) -> None:
        self._p = checked_probability("p", p)
        self._p_both = checked_probability("p_both", p_both)

    def __call__(self, item: dict) -> dict:
        """Return the item with ``visual`` (S, F, D) and ``visual_mask`` (S,) changed; without lips as it is."""
        if "visual" not in item:
            return item
        mask = item["visual_mask"].clone()
        if chance(self._p_both):
            mask[:] = False
        elif chance(self._p) and mask.all():
            mask[integer(mask.numel())] = False
        return {**item, "visual": item["visual"] * mask[:, None, None], "visual_mask": mask}
