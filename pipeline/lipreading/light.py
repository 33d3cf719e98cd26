"""A light lip encoder: a small per-frame trunk and a temporal trunk of plain convolutions.

It reads no words: it is trained to tell which voice a mouth belongs to, and at which offset (`pipeline.synchrony`).

Axes: N frames, B clips, T video frames, C channels, H height, W width.
"""

from torch import Tensor, nn
from torch.nn import functional


def _convolution(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class LightTrunk(nn.Module):
    """Three strided convolutions, a residual one, and a linear map of what is left, place by place.

    The last map is not averaged: where in the picture something moves tells lips from chin.

    Shape:
        (N, 24, 22, 22) -> (N, 128)
    """

    in_channels = 24
    out_channels = 128

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Sequential(*_convolution(self.in_channels, 48, 2), *_convolution(48, 96, 2))
        self.middle = nn.Sequential(*_convolution(96, 96, 1))
        self.last = nn.Sequential(*_convolution(96, 96, 2))
        self.out = nn.Linear(96 * 3 * 3, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        x = x + self.middle(x)
        return self.out(self.last(x).flatten(1))


class LightTemporal(nn.Module):
    """Convolutions along time; the last one is linear.

    Shape:
        (B, 128, T) -> (B, 64, T)
    """

    out_channels = 64

    def __init__(self, in_channels: int, *, width: int = 128, kernel: int = 5) -> None:
        super().__init__()
        self.context_frames = 3 * (kernel // 2)
        padding = kernel // 2
        self.norm = nn.BatchNorm1d(in_channels)
        self.first = nn.Conv1d(in_channels, width, kernel, padding=padding)
        self.first_norm = nn.BatchNorm1d(width)
        self.second = nn.Conv1d(width, width, kernel, padding=padding)
        self.second_norm = nn.BatchNorm1d(width)
        self.last = nn.Conv1d(width, self.out_channels, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first_norm(self.first(self.norm(x))))
        x = x + functional.relu(self.second_norm(self.second(x)))
        return self.last(x)
