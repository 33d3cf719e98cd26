"""How many processor cores this process may use, which in a container or a batch job are fewer than the machine has."""

import os


def usable_cores() -> int:
    """The number of cores that the process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
