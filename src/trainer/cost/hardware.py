"""The machine that figures were measured on."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.cores import usable_cores


@dataclass(frozen=True)
class Hardware:
    """Processor, cores this process may use, threads PyTorch uses, GPU, versions."""

    cpu: str
    cores: int
    threads: int
    gpu: str | None
    torch: str
    python: str
    system: str


def find_hardware(devices: Sequence[str]) -> Hardware:
    """The machine of this process.

    Args:
        devices: those that are used.
    """
    gpus = [torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda")]
    return Hardware(
        cpu=_cpu_name(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        gpu=", ".join(gpus) or None,
        torch=torch.__version__,
        python=sys.version.split()[0],
        system=platform.platform(),
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
