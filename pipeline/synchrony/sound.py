"""The voice's half: log-mel frames, and the network that brings them to the lips' space and rate.

Axes: B clips, T samples, M mel bands, N mel frames (100 per second), F video frames (25 per second), P dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import MelSpectrogram

from pipeline.audio_io import SAMPLE_RATE_HZ

MEL_BANDS = 40
MEL_PER_FRAME = 4  # mel frames in a video frame


class LogMel(nn.Module):
    """Log-mel energies, 25 ms windows every 10 ms. Shape: (..., T) -> (..., M, N = T // 160 + 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram(
            SAMPLE_RATE_HZ, n_fft=512, win_length=400, hop_length=160, n_mels=MEL_BANDS, f_min=60
        )

    def forward(self, voice: Tensor) -> Tensor:
        return torch.log(self.mel(voice) + 1e-5)


def _layer(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    padding = kernel // 2 if stride == 1 else (kernel - stride) // 2
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, kernel, stride=stride, padding=padding),
        nn.BatchNorm1d(out_channels),
        nn.ReLU(),
    )


class SoundEncoder(nn.Module):
    """Convolutions along time, strided twice by two: four mel frames to a video frame.

    Shape:
        (B, M, 4 F) -> (B, P, F)
    """

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.first = _layer(MEL_BANDS, width, 5)
        self.halve = nn.Sequential(_layer(width, width, 4, 2), _layer(width, width, 4, 2))
        self.middle = _layer(width, width, 5)
        self.last = nn.Conv1d(width, dim, 5, padding=2)

    def forward(self, mel: Tensor) -> Tensor:
        # The channel and the level of a recording are not what moves with the lips.
        mel = functional.layer_norm(mel - mel.mean(dim=2, keepdim=True), mel.shape[1:])
        hidden = self.halve(self.first(mel))
        return self.last(hidden + self.middle(hidden))
