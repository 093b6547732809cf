"""Peak memory of calls whose allocations are known."""

from __future__ import annotations

import torch

from ldm_ae.core.peak_memory import peak_memory

CPU = torch.device("cpu")


def test_peak_memory_is_of_tensors_that_exist_at_the_same_time() -> None:
    def call() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(300)
        del second, third
        torch.empty(100)

    assert peak_memory(call, CPU) == 4 * 1500


def test_peak_memory_does_not_count_what_existed_before() -> None:
    before = torch.ones(10_000)
    assert peak_memory(lambda: before.add_(before), CPU) == 0
    assert peak_memory(lambda: before + before, CPU) == 40_000
    assert before[0] == 2


def test_peak_memory_counts_a_kernels_workspace() -> None:
    """Sorting makes the values and the indices, and needs more than these."""
    values = torch.rand(1000)
    found = peak_memory(lambda: values.sort(), CPU)
    assert found is not None
    assert found >= 1000 * (4 + 8)


def test_peak_memory_is_unknown_on_other_devices() -> None:
    assert peak_memory(lambda: None, torch.device("meta")) is None
