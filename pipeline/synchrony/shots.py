"""Shots: stretches of a mouth clip without a cut.

A clip that is joined out of two has its joint in the picture and in the voice at the same time. Between any mouth and
any voice it would tell the offset, and which of several clips belong together, so that training would learn joints
where it should learn lips.

Axes: F video frames, H rows, W columns.
"""

from itertools import pairwise

import numpy as np

JUMP = 2.5  # of the clip's median difference between two frames
PEAK = 1.5  # of the differences beside it: a mouth that opens fast takes several frames


def shots(frames: np.ndarray) -> list[range]:
    """The shots of a clip, in order, which together are all its frames.

    A cut is where the picture changes more than it usually does in the clip, and more than just before and after.

    Shape: intensities (F, H, W) -> ranges over F; none of an empty clip.
    """
    moved = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(axis=(1, 2))
    beside = np.pad(moved, 2)  # (F - 1 + 4,)
    around = np.max([beside[k : k + len(moved)] for k in (0, 1, 3, 4)], axis=0)
    usual = np.median(moved[moved > 0]) if moved.any() else 0.0  # frames may be shown twice
    is_cut = (moved > JUMP * usual) & (moved > PEAK * around)
    starts = [0, *(np.flatnonzero(is_cut) + 1).tolist(), len(frames)]
    return [range(start, end) for start, end in pairwise(starts) if end > start]
