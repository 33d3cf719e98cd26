"""What hardware is good for half precision."""

from functools import cache
from pathlib import Path

import torch


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16 (an emulation is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
