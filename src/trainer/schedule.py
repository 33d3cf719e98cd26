"""Learning-rate schedules, stepped once per optimizer step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Optimizer, *, warmup_steps: int, total_steps: int, final_share: float = 0.05
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to a share of the peak rate, held from `total_steps` on.

    Args:
        optimizer: its `lr` is the peak.
        warmup_steps: steps until the peak.
        total_steps: steps until the cosine's end.
        final_share: rate at the end as a share of the peak.

    Reference: Loshchilov and Hutter 2017, eq. 5, without restarts.
    """

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_share + (1 - final_share) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, share)
