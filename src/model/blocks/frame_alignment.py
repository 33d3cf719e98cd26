"""Video frames held at audio frames and the reverse, by time: nothing is stretched where the two lengths differ.

Axes: B batch, C channels, F video frames of 640 samples, N audio frames, frame n centred at sample n * hop.
"""

import torch
from torch import Tensor

from src.model.blocks.lip_fusion import SAMPLES_PER_VIDEO_FRAME


def video_at_audio(video: Tensor, num_frames: int, hop: int) -> Tensor:
    """The video frame shown at the centre of each audio frame, the last one held.

    Shape: (B, C, F) -> (B, C, N).
    """
    shown = torch.arange(num_frames, device=video.device) * hop // SAMPLES_PER_VIDEO_FRAME
    return video.index_select(-1, shown.clamp(max=video.shape[-1] - 1))


def audio_at_video(audio: Tensor, num_frames: int, hop: int) -> Tensor:
    """The audio frame nearest to the middle of each video frame, the last one held.

    Shape: (B, C, N) -> (B, C, F).
    """
    middle = torch.arange(num_frames, device=audio.device) * SAMPLES_PER_VIDEO_FRAME
    heard = (middle + SAMPLES_PER_VIDEO_FRAME // 2 + hop // 2) // hop
    return audio.index_select(-1, heard.clamp(max=audio.shape[-1] - 1))
