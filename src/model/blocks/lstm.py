"""LSTM under autocast on any processor."""

import torch
from torch import Tensor, nn

from pipeline.bfloat16 import has_bfloat16


class LSTM(nn.LSTM):
    """`torch.nn.LSTM`, in the precision of its weights where a CPU has no bfloat16.

    There autocast would ask for a kernel that does not exist ("could not create a primitive descriptor").
    """

    def forward(self, sequence: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Shape: (B, N, I), batch first -> as of `torch.nn.LSTM`."""
        device = sequence.device
        if not torch.is_autocast_enabled(device.type) or device.type != "cpu" or has_bfloat16(device):
            return super().forward(sequence)
        with torch.autocast(device.type, enabled=False):
            return super().forward(sequence.to(self.weight_ih_l0.dtype))
