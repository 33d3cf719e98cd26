"""Freed memory is there for the next tensor, without the system's help."""

import os
import subprocess
import sys

import pytest

PAGES_TAKEN = """
import resource, sys
import torch
from pipeline.freed_memory import keep_freed_memory

kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(40):  # the heap grows a few times before a freed block fits the next tensor with its alignment
    torch.zeros(12 * 2**20)  # 48 MB; what glibc keeps by itself is 32 MB at most
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(12 * 2**20)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_taken(choice: str, **variables: str) -> tuple[bool, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    out = subprocess.run(
        [sys.executable, "-c", PAGES_TAKEN, choice],
        env={**environment, **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, pages = map(int, out.stdout.split())
    return bool(kept), pages


def test_a_tensor_takes_no_new_pages_once_one_of_its_size_was_freed():
    kept, pages = pages_taken("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    tensor = 48 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert pages < tensor
    assert pages_taken("give back")[1] >= 20 * tensor


def test_what_the_user_chose_stands():
    assert pages_taken("keep", MALLOC_MMAP_THRESHOLD_="65536")[0] is False
