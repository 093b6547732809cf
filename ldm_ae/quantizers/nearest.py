"""The nearest code of each vector, without the whole N x K matrix of distances."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Distances that are held at once: 64 MB in float32."""


@torch.no_grad()
def nearest_codes(rows: Tensor, table: Tensor, *, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """Index of the code with the smallest Euclidean distance; the smallest index among equals.

    The squared distance without the row's own norm, |e|^2 - 2 z e, is compared in float32 with autocast off, at the
    precision that torch.set_float32_matmul_precision allows.

    Args:
        rows: (N, D).
        table: (K, D).
        chunk_elements: Bounds the memory; at least one row is compared at a time.

    Returns:
        (N,) int64 in [0, K).
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows, table = rows.float(), table.float()
        norms = table.square().sum(dim=1)
        size = max(chunk_elements // len(table), 1)
        chunks = [torch.addmm(norms, chunk, table.T, alpha=-2.0).argmin(dim=1) for chunk in rows.split(size)]
    return torch.cat(chunks)
