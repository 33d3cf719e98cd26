"""Peak memory of one step, measured in a fresh process that does nothing else.

On a GPU: the most that PyTorch had allocated at once, weights included (`torch.cuda.max_memory_allocated`). On a CPU:
by how much the step raised the process's peak resident memory (VmHWM of /proc/self/status, `ru_maxrss` where there
is no such file) above what was resident before it, when model and inputs were there already. That holds code and
buffers that libraries load at their first use. Blocks of 64 KB and more bypass the heap of the measuring process: with
a heap, fragmentation adds up to four fifths, differently in every run.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from src.trainer.cost.workload import TRAINING, LipReaderChoice, Workload, make_step
from src.utils.io_utils import ROOT_PATH

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_NO_HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes; of glibc, others do not know it


class StepError(RuntimeError):
    """A step broke off in the process that measures it."""


@dataclass(frozen=True)
class Peak:
    """Memory of one step.

    Attributes:
        step_bytes: the figure to report: on a CPU `peak_bytes - before_bytes`, on a GPU `peak_bytes`.
        before_bytes: with model and inputs in place.
        peak_bytes: most at any time of the step.
        source: what was read.
    """

    step_bytes: int
    before_bytes: int
    peak_bytes: int
    source: str


def peak_memory(work: Workload, part: str, kind: str) -> Peak | None:
    """Run one step in a process of its own.

    Args:
        work, part, kind: as of `make_step`.

    Returns:
        None when the memory did not suffice.

    Raises:
        StepError: the step failed for another reason.
    """
    order = {"work": asdict(work), "part": part, "kind": kind, "threads": torch.get_num_threads()}
    child = subprocess.run(
        [sys.executable, "-m", "src.trainer.cost.memory"],
        input=json.dumps(order),
        cwd=ROOT_PATH,
        env={**os.environ, **_NO_HEAP},
        capture_output=True,
        text=True,
    )
    if child.returncode == -signal.SIGKILL:  # what Linux sends when memory has run out
        return None
    if child.returncode != 0:
        raise StepError(f"memory of {part}, {kind}: the process that measures it ended with\n{child.stderr}")
    answer = json.loads(child.stdout.splitlines()[-1])
    return None if answer is None else Peak(**answer)


def peak_of_call(call: Callable[[], Any], device: str) -> Peak:
    """Peak of a call in this process, which must be fresh: memory that was freed before hides what the call takes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        return Peak(peak, before, peak, "torch.cuda.max_memory_allocated")
    _give_back_freed_memory()
    before, source = _resident(after=False)
    call()
    peak, _ = _resident(after=True)
    return Peak(peak - before, before, peak, source)


def _give_back_freed_memory() -> None:
    """Building a model leaves freed memory resident, which the step would take up again unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _resident(*, after: bool) -> tuple[int, str]:
    """Resident bytes before the step, or their peak after it, and where that is from."""
    if _STATUS.exists() and "VmHWM:" in _STATUS.read_text():
        if not after:
            # The peak begins again at what is resident now; where that is not allowed, it goes on from the start.
            with contextlib.suppress(OSError):
                _CLEAR_REFS.write_text("5")
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024, "VmHWM"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"


def main() -> None:
    """Read an order from standard input, write the peak (or null: out of memory) to standard output."""
    order = json.load(sys.stdin)
    work = order["work"]
    if work["lip_reader"] is not None:
        work["lip_reader"] = LipReaderChoice(**work["lip_reader"])
    torch.set_num_threads(order["threads"])
    work = Workload(**work)
    try:
        step = make_step(work, order["part"], order["kind"])
        if order["kind"] == TRAINING and work.device.startswith("cuda"):
            step()  # the first one makes the optimizer's state, which all others hold throughout
        peak = peak_of_call(step, work.device)
    except torch.OutOfMemoryError:
        peak = None
    print(json.dumps(peak and asdict(peak)))


if __name__ == "__main__":
    main()
