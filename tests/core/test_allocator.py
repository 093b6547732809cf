"""Freed memory is taken again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from ldm_ae.core.allocator import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
by_itself = min(faults() for _ in range(5))
assert keep_freed_memory(torch.device("cpu"))
print(by_itself, min(faults() for _ in range(40)))  # the first dozen may not fit where those before them were
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_reused_without_page_faults() -> None:
    by_itself, kept = map(int, subprocess.check_output([sys.executable, "-c", FAULTS], text=True).split())
    assert kept < 50 < by_itself  # 64 MiB are 16,384 pages, or 32 huge ones
