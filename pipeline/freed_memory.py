"""Memory that was freed stays with the process, for the next tensor of that size."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
_LARGEST_KEPT = 256 * 2**20  # bytes of one tensor
_GROWTH = 64 * 2**20
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep what it would give back to the system.

    It gives large blocks back at once, and the system hands them out again page by page, each filled with zeros first:
    on a CPU that is a good part of the time of a step. What is kept counts as memory of the process, up to the most
    that it ever held. Of no effect with another C library, or where MALLOC_ variables of the environment choose.

    Returns:
        Whether it is set.

    Reference: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    chosen = {_M_MMAP_THRESHOLD: _LARGEST_KEPT, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _GROWTH}
    return all(mallopt(option, value) == 1 for option, value in chosen.items())
