"""The single-branch temporal convolutional network (ShuffleNet configurations).

Axes: B clips, C channels, T video frames.
"""

import torch
from torch import Tensor, nn

from pipeline.lipreading.activation import make_activation

DROPOUT = 0.2
DILATIONS = (1, 2, 4, 8)


def same_conv(
    in_channels: int, out_channels: int, kernel: int, *, dilation: int, bias: bool = True, groups: int = 1
) -> nn.Conv1d:
    """A centred (not causal) dilated convolution along time that keeps T."""
    return nn.Conv1d(
        in_channels,
        out_channels,
        kernel,
        padding=dilation * (kernel - 1) // 2,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )


class TemporalBlock(nn.Module):
    """Two convolutions of kernel 3 with a shortcut.

    Published checkpoints list six layers of every block a second time under ``net.*``, sharing the tensors.
    This block keeps the first names; the others are accepted on loading and must agree with them.

    Shape:
        (B, C_in, T) -> (B, C_out, T)

    Reference:
        Bai et al., "An empirical evaluation of generic convolutional and recurrent networks for sequence
        modeling", 2018, fig. 1 (b); made non-causal by Martinez et al., "Lipreading using temporal
        convolutional networks", 2020.
    """

    kernel = 3
    aliases = {  # noqa: RUF012 - a constant of the file format
        "net.0": "conv1",
        "net.1": "batchnorm1",
        "net.3": "relu1",
        "net.5": "conv2",
        "net.6": "batchnorm2",
        "net.8": "relu2",
    }

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int, activation: str) -> None:
        super().__init__()
        self.conv1 = same_conv(in_channels, out_channels, self.kernel, dilation=dilation)
        self.batchnorm1 = nn.BatchNorm1d(out_channels)
        self.relu1 = make_activation(activation, out_channels)
        self.conv2 = same_conv(out_channels, out_channels, self.kernel, dilation=dilation)
        self.batchnorm2 = nn.BatchNorm1d(out_channels)
        self.relu2 = make_activation(activation, out_channels)
        self.downsample = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.relu = make_activation(activation, out_channels)
        self.dropout = nn.Dropout(DROPOUT)
        self.register_load_state_dict_pre_hook(_merge_aliases)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        hidden = self.dropout(self.relu1(self.batchnorm1(self.conv1(x))))
        hidden = self.dropout(self.relu2(self.batchnorm2(self.conv2(hidden))))
        return self.relu(hidden + shortcut)


def _merge_aliases(
    block: TemporalBlock,
    state_dict: dict[str, Tensor],
    prefix: str,
    _metadata: dict,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Folds ``net.*`` entries of `state_dict` into the names this block knows (load-state-dict pre-hook)."""
    for alias, layer in block.aliases.items():
        head = f"{prefix}{alias}."
        for key in [key for key in state_dict if key.startswith(head)]:
            canonical = f"{prefix}{layer}.{key[len(head) :]}"
            value = state_dict.pop(key)
            known = state_dict.setdefault(canonical, value)
            if known is not value and not torch.equal(known, value):
                errors.append(
                    f"{key} and {canonical} are one layer in this network but hold different values"
                )


class TemporalConvNet(nn.Module):
    """Four blocks of growing dilation.

    Shape:
        (B, in_channels, T) -> (B, width, T)
    """

    # Two convolutions a block, each (k - 1) / 2 * dilation frames to either side.
    context_frames: int | None = sum(2 * (TemporalBlock.kernel - 1) // 2 * d for d in DILATIONS)

    def __init__(self, in_channels: int, *, width: int, activation: str) -> None:
        super().__init__()
        self.out_channels = width
        self.network = nn.Sequential(
            *(
                TemporalBlock(width if i else in_channels, width, dilation=d, activation=activation)
                for i, d in enumerate(DILATIONS)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
