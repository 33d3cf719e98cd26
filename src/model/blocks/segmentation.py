"""Segmentation of a long sequence into half-overlapping chunks, and overlap-add of chunks back to a sequence.

Axes: B batch, N frames, C channels, G chunks, K frames of a chunk.

Reference: Luo, Chen and Yoshioka, "Dual-path RNN", 2020, segmentation and overlap-add.
"""

from torch import Tensor
from torch.nn import functional


def segment(sequence: Tensor, chunk: int) -> Tensor:
    """Chunks of `chunk` frames, each half a chunk after the last; every frame lies in exactly two.

    Shape: (B, N, C) -> (B, G, K, C).
    """
    half = chunk // 2
    num_frames = sequence.shape[1]
    missing = -num_frames % half
    padded = functional.pad(sequence, (0, 0, half, half + missing))
    return padded.unfold(1, chunk, half).transpose(2, 3)


def overlap_add(chunks: Tensor, num_frames: int) -> Tensor:
    """Mean of the two chunks over every frame, so that it undoes `segment`.

    Shape: (B, G, K, C) -> (B, num_frames, C).
    """
    half = chunks.shape[2] // 2
    # A half-chunk of padding is dropped at either end: the first chunk gives its second half, the last its first.
    first, second = chunks[:, 1:, :half], chunks[:, :-1, half:]
    return ((first + second) / 2).flatten(1, 2)[:, :num_frames]
