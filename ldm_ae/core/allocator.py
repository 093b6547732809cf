"""The C library's allocator, for networks that run on a CPU."""

from __future__ import annotations

import ctypes
import platform

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""mallopt(3)."""
_MEBIBYTES_AT_A_TIME = 256


def keep_freed_memory(device: torch.device) -> bool:
    """For networks on a CPU: have this process keep the memory that it frees, and take it again for the next tensors.

    By itself glibc gives every large tensor fresh pages and returns them at once, so that each step of a training asks
    the system for all its activations again, a page fault and a zeroed page every 4 KiB. Afterwards the process holds
    what it once needed, and some more, because freed pieces do not always fit.

    Args:
        device: Where the networks run.

    Returns:
        Whether it is kept: glibc alone can do it.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, _MEBIBYTES_AT_A_TIME << 20)]
    return all(done)
