"""The whole network in bfloat16, its weights kept in float32 beside it.

Autocast goes to and fro between the two formats around every norm and residual sum. That is cheap on a GPU; on a CPU,
where elementwise work decides, it is slower than no half precision at all, and this is faster than either.
"""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class HalfWeights(nn.Module):
    """Calls a network with its parameters rounded to bfloat16; gradients reach the float32 ones.

    Args:
        network: one whose class sets `HALF_WEIGHTS`: it brings its inputs to the format of its weights, and keeps
            spectra and waveforms in float32.

    Raises:
        ValueError: the network does not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not getattr(network, "HALF_WEIGHTS", False):
            raise ValueError(
                f"trainer.amp=bfloat16_weights: {type(network).__name__} is not written for it; take "
                "trainer.amp=bfloat16"
            )
        self.network = network

    def forward(self, **batch: Any) -> dict[str, Any]:
        """As the network's."""
        rounded = {name: weight.to(torch.bfloat16) for name, weight in self.network.named_parameters()}
        return functional_call(self.network, rounded, (), batch)
