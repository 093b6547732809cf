"""Lloyd's k-means over the rows of every process; the result is the same for every split of a global batch.

Source: Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28(2), 1982.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_ae.quantizers.nearest import nearest_codes
from ldm_ae.quantizers.processes import GlobalRows, cluster_sums, sum_over_processes


def kmeans(parts: Sequence[Tensor], count: int, *, iterations: int, seed: int) -> Tensor:
    """Return the centers of at most `count` clusters, fewer if there are fewer rows.

    The first centers are distinct rows drawn with `seed`. A cluster that loses all its rows keeps its center.

    Args:
        parts: (N_j, D) float32 rows of each micro-batch of this process.
        count: Number of clusters.
        iterations: Rounds of assignment and averaging.
        seed: Seed, the same on every process.

    Returns:
        (min(count, rows), D) float32.
    """
    rows = GlobalRows(parts)
    centers = rows.take(draw_positions(rows.total, count, seed).to(parts[0].device))
    for _ in range(iterations):
        indices = [nearest_codes(part, centers) for part in parts]
        sums = cluster_sums(parts, indices, len(centers))
        local = torch.stack([torch.bincount(index, minlength=len(centers)) for index in indices]).sum(dim=0)
        sizes = sum_over_processes(local)[:, None]
        centers = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers.to(sums)).float()
    return centers


def draw_positions(total: int, count: int, seed: int) -> Tensor:
    """Draw min(count, total) distinct positions in [0, total) as a function of the seed, (M,) int64 on the CPU."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
