"""Long recordings as overlapping windows that join without a seam and without swapping the voices.

Windows start and end on video frames, so that each takes whole frames of the lip embeddings. All windows of a
recording have the same length and are spread evenly, so that they can share a batch. Where two windows overlap,
the earlier one is faded out and the later one in, with weights that sum to one.

Axes: S = 2 voices, n samples of a stretch, F video frames, D lip embedding.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.mouths import FRAME_RATE_HZ


def plan_windows(num_frames: int, window: int | None, overlap: int) -> list[tuple[int, int]]:
    """Windows that cover a recording.

    Args:
        num_frames: length of the recording in video frames of 40 ms, a started one counted as whole.
        window: length of a window in video frames; None for one window over everything.
        overlap: least overlap of two neighbours in video frames.

    Returns:
        Start and end of each window in video frames, in order, the first at 0 and the last to `num_frames`.

    Raises:
        ValueError: window or overlap are out of range.
    """
    if window is not None and window < 1:
        raise ValueError(f"inferencer.window_s: {window / FRAME_RATE_HZ:g} s; take 0.04 s at least, or null")
    if window is not None and not 0 <= overlap <= window // 2:
        raise ValueError(
            f"inferencer.overlap_s: {overlap / FRAME_RATE_HZ:g} s must lie between 0 and half of "
            f"inferencer.window_s={window / FRAME_RATE_HZ:g}"
        )
    if window is None or num_frames <= window:
        return [(0, num_frames)]
    number = -(-(num_frames - overlap) // (window - overlap))
    last = num_frames - window
    starts = [round(i * last / (number - 1)) for i in range(number)]
    return [(start, start + window) for start in starts]


def frame_to_sample(frame: int, rate_hz: int) -> int:
    """First sample of a video frame: exact at 16 kHz (640 per frame), rounded where the rate does not divide."""
    return (2 * frame * rate_hz + FRAME_RATE_HZ) // (2 * FRAME_RATE_HZ)


def count_frames(num_samples: int, rate_hz: int) -> int:
    """Video frames that a stretch of audio lasts, a started one counted as whole."""
    return -(-num_samples * FRAME_RATE_HZ // rate_hz)


def fade_in(length: int) -> np.ndarray:
    """Weight of the later of two overlapping windows: a squared sine from 0 to 1. Shape: (length,)."""
    return (np.sin(np.pi / 2 * (np.arange(length) + 0.5) / max(length, 1)) ** 2).astype(np.float32)


def is_swapped(previous: np.ndarray, current: np.ndarray) -> bool:
    """Whether `current` holds the voices in the other order, by correlation over one stretch of time.

    Silence, where nothing tells the voices apart, counts as the same order.

    Shape: both (S, n).
    """
    correlation = previous.astype(np.float64) @ current.astype(np.float64).T  # (S, S)
    return bool(correlation[0, 1] + correlation[1, 0] > correlation[0, 0] + correlation[1, 1])


class Joiner:
    """Joins the windows of one recording, which arrive in order; holds about one window.

    What no later window can change any more is handed out at once.
    """

    def __init__(self) -> None:
        self._tail = np.zeros((2, 0), np.float32)  # joined, not yet handed out
        self._start = 0  # sample at which the tail starts

    def add(self, start: int, voices: np.ndarray, next_start: int | None, *, ordered: bool) -> np.ndarray:
        """Take the next window.

        Args:
            start: its first sample.
            voices: (S, n), its estimates.
            next_start: first sample of the window after it; None after the last one.
            ordered: whether lips fixed the order of its voices; if not, it takes the order of those before.

        Returns:
            (S, m): the recording from where the last call ended to `next_start`.
        """
        num_old = start - self._start
        shared = self._tail.shape[1] - num_old
        assert num_old >= 0 and 0 <= shared <= voices.shape[1], (
            f"the window at sample {start} is out of order"
        )
        old, overlapped = self._tail[:, :num_old], self._tail[:, num_old:]
        if not ordered and is_swapped(overlapped, voices[:, :shared]):
            voices = voices[::-1]
        blended = overlapped + fade_in(shared) * (voices[:, :shared] - overlapped)
        joined = np.concatenate([old, blended, voices[:, shared:]], axis=1)
        ready = joined.shape[1] if next_start is None else next_start - self._start
        self._tail, self._start = joined[:, ready:], self._start + ready
        return joined[:, :ready]


def counts_as_lips(num_frames: int, start: int, stop: int) -> bool:
    """Whether a video from the start of the recording covers half of a window at least."""
    covered = min(num_frames, stop) - start
    return covered > 0 and 2 * covered >= stop - start


def lips_of_window(
    lips: Sequence[np.ndarray | None], start: int, stop: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lip embeddings of one window.

    A video that ends inside the window is held at its last frame, if it counts as lips there (`counts_as_lips`).

    Args:
        lips: per voice (F, D) from the start of the recording, or None without lips.
        start, stop: the window in video frames.
        dim: D.

    Returns:
        visual (S, stop - start, D) float32, zeros for a voice without lips, and visual_mask (S,) bool.
    """
    visual = np.zeros((len(lips), stop - start, dim), np.float32)
    mask = np.zeros(len(lips), bool)
    for voice, whole in enumerate(lips):
        if whole is not None and counts_as_lips(len(whole), start, stop):
            piece = whole[start:stop]
            visual[voice, : len(piece)] = piece
            visual[voice, len(piece) :] = piece[-1]
            mask[voice] = True
    return visual, mask
