"""Sums over processes, and row numbers that do not depend on how a global batch is split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of every process's tensor, the same on all of them."""
    if _processes() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean over processes, differentiated as if it were this process's own value.

    Under DistributedDataParallel, which averages gradients, a function of it then has the gradient of the whole batch.
    """
    with torch.no_grad():
        others = sum_over_processes(values.detach()) / _processes() - values.detach()
    return values + others


def cluster_sums(parts: Sequence[Tensor], indices: Sequence[Tensor], count: int) -> Tensor:
    """Return the sum of each cluster's rows over micro-batches and processes, (count, D) float64 (float32 on mps).

    Float64 makes the result independent of the order of summation once it is rounded to float32.

    Args:
        parts: (N_j, D) rows of each micro-batch.
        indices: (N_j,) int64 clusters.
        count: Number of clusters.
    """
    device = parts[0].device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    sums = torch.zeros(count, parts[0].shape[1], dtype=dtype, device=device)
    for part, index in zip(parts, indices, strict=True):
        sums.index_add_(0, index, part.to(dtype))
    return sum_over_processes(sums)


class GlobalRows:
    """Rows of every process's micro-batches, numbered in the order of the global batch.

    Micro-batch j of process r is part j * processes + r of the global batch, as in the trainer's loader.

    Args:
        parts: (N_j, D) rows of each micro-batch of this process; the number of parts is the same everywhere.
    """

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = parts
        lengths = torch.tensor([len(part) for part in parts], device=parts[0].device)
        gathered = [lengths]
        rank = 0
        if _processes() > 1:
            rank = distributed.get_rank()
            gathered = [torch.empty_like(lengths) for _ in range(_processes())]
            distributed.all_gather(gathered, lengths)
        ordered = torch.stack(gathered, dim=1)  # (parts, processes)
        ends = ordered.flatten().cumsum(0).view_as(ordered)
        self.total = int(ends[-1, -1])
        self._starts = (ends - ordered)[:, rank].tolist()

    def take(self, positions: Tensor) -> Tensor:
        """Return the rows at positions (M,) int64 in [0, total), the same on every process: (M, D)."""
        found = self.parts[0].new_zeros(len(positions), self.parts[0].shape[1])
        for start, part in zip(self._starts, self.parts, strict=True):
            inside = (positions >= start) & (positions < start + len(part))
            found[inside] = part[positions[inside] - start]
        return sum_over_processes(found)  # exactly one process has each row; the others contribute zeros
