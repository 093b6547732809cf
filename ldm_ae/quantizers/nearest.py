"""Search for the nearest code of each vector, without the whole N x K matrix of distances."""

from __future__ import annotations

import torch
from torch import Tensor

CPU_CHUNK_ELEMENTS, CHUNK_ELEMENTS = 2**23, 2**26
"""Number of distances held at once: 32 MB on a CPU; elsewhere 256 MB, enough to fill a GPU."""


@torch.no_grad()
def nearest_codes(rows: Tensor, table: Tensor, *, chunk_elements: int | None = None) -> Tensor:
    """Return the index of the code with the smallest Euclidean distance; the smallest index among equals.

    The squared distance without the row's own norm, |e|^2 - 2 z e, is compared in float32 with autocast off, at the
    precision that torch.set_float32_matmul_precision allows.

    Args:
        rows: (N, D).
        table: (K, D).
        chunk_elements: Bound of the memory; at least one row is compared at a time.

    Returns:
        (N,) int64 in [0, K).
    """
    if chunk_elements is None:
        chunk_elements = CPU_CHUNK_ELEMENTS if rows.device.type == "cpu" else CHUNK_ELEMENTS
    with torch.autocast(rows.device.type, enabled=False):
        rows, table = rows.float(), table.float()
        norms = table.square().sum(dim=1)
        size = min(max(chunk_elements // len(table), 1), len(rows))
        distances = rows.new_empty(size, len(table))  # one buffer for all: fresh pages cost more than the arithmetic
        indices = rows.new_empty(len(rows), dtype=torch.int64)
        for chunk, found in zip(rows.split(max(size, 1)), indices.split(max(size, 1)), strict=True):
            part = torch.addmm(norms, chunk, table.T, alpha=-2.0, out=distances[: len(chunk)])
            torch.argmin(part, dim=1, out=found)
    return indices
