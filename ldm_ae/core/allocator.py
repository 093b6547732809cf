"""The C library's allocator, for networks that run on a CPU."""

from __future__ import annotations

import ctypes
import platform

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""
_MEBIBYTES_AT_A_TIME = 256


def keep_freed_memory(device: torch.device) -> bool:
    """Make a process whose networks run on a CPU keep the memory that it frees, and reuse it for the next tensors.

    By default glibc gives every large tensor fresh pages and returns them at once, so that each training step requests
    the memory of all its activations again, with a page fault and a zeroed page every 4 KiB. With this setting the
    process keeps its peak memory, and slightly more, because freed pieces do not always fit.

    Args:
        device: Device of the networks.

    Returns:
        Whether the memory is kept, which only glibc supports.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, _MEBIBYTES_AT_A_TIME << 20)]
    return all(done)
