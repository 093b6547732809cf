"""Total correlation of the aggregate posterior. Source: Chen et al., Isolating Sources of Disentanglement in VAEs,
arXiv 1802.04942, eq. 2."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.representation.information.aggregate_posterior import draws, log_aggregate, log_density


def total_correlation(means: Tensor, log_variances: Tensor, *, seed: int = 0) -> float:
    """Return the estimate of KL(q(z) || prod_d q(z_d)) in nats: how far the D latents are from independent.

    q(z) is the mixture of the posteriors of N images. The estimate has a bias upwards where posteriors are narrow and N
    is small, because the mixture then resolves single images. The time grows with N^2 D.

    Args:
        means: (N, D).
        log_variances: (N, D).
        seed: Seed of one draw of each posterior.
    """
    latents = draws(means, log_variances, seed)

    def log_mixture(latents: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
        own = log_density(latents, means.double(), log_variances.double())
        return log_aggregate(latents, means, log_variances, own=own)

    single = torch.stack([
        log_mixture(latents[:, d : d + 1], means[:, d : d + 1], log_variances[:, d : d + 1])
        for d in range(means.shape[1])
    ])  # fmt: skip
    return float((log_mixture(latents, means, log_variances) - single.sum(dim=0)).mean())
