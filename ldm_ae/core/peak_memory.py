"""Peak memory of a call's tensors."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Run a call and return the largest number of bytes that its own tensors and workspaces take at any time.

    What exists before, such as weights, is not counted. On a CPU these are the allocations that torch's profiler
    records, which equal the growth of the process within 1% if every tensor has pages of its own: measured, the size of
    the process depends on the memory that the C library keeps (`ldm_ae.core.allocator`). On CUDA the peak of torch's
    statistics is reset.

    Returns:
        Bytes; None on other devices.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints its start, its end and that there is no GPU
    with profile(use_kineto=False, profile_memory=True) as record:
        call()
    assert record.kineto_results is not None
    changes = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    size = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        size += change.nbytes()
        peak = max(peak, size)
    return peak
