"""Mutual information of image and latents, and the aggregate posterior against the prior.

Source: Hoffman and Johnson, ELBO surgery, NIPS 2016 workshop on advances in approximate Bayesian inference: the mean KL
of the posteriors to the prior is I(x; z) + KL(q(z) || p(z)), where q(z) is the mean of all posteriors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.seeding import seeded_noise

_ROWS = 256
"""Number of draws whose densities under all posteriors are in memory at once."""
_LOG_TWO_PI = math.log(2 * math.pi)


class Information(NamedTuple):
    """The rate and its two parts, in nats for each image."""

    rate: float
    """Mean KL of the posteriors to N(0, 1)."""
    mutual_information: float
    """Estimate of I(x; z); at most `limit`, so that a value near it means "at least so much"."""
    aggregate_kl: float
    """`rate` - `mutual_information`, an estimate of KL(q(z) || N(0, 1)). Where the mutual information is near its
    limit, this is only an upper bound."""
    limit: float
    """log N, the largest information that N images can show: which of them it is."""


def information(means: Tensor, log_variances: Tensor, *, seed: int = 0) -> Information:
    """Estimate I(x; z) under the encoder, with q(z) as the mixture of the posteriors of these N images.

    The estimate is the mean of log q(z|x) - log q(z) over one draw z of each posterior. Because the mixture contains
    the draw's own posterior, it cannot exceed log N, and in expectation it is at most I(x; z).

    Args:
        means: (N, D).
        log_variances: (N, D).
        seed: Seed of the draws.
    """
    latents = draws(means, log_variances, seed)
    rate = 0.5 * (means.double() ** 2 + log_variances.double().exp() - 1 - log_variances.double()).sum(dim=1).mean()
    own = log_density(latents, means.double(), log_variances.double())
    found = float((own - log_aggregate(latents, means, log_variances, own=own)).mean())
    return Information(float(rate), found, float(rate) - found, math.log(len(means)))


def draws(means: Tensor, log_variances: Tensor, seed: int) -> Tensor:
    """Return one draw of each posterior, (N, D) float64."""
    noise = seeded_noise(torch.arange(seed, seed + len(means)), (means.shape[1],)).to(means.device)
    return means.double() + (0.5 * log_variances.double()).exp() * noise.double()


def log_density(latents: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """Return the log-density (N,) of latents (N, D), each under the diagonal Gaussian of its row."""
    squares = (latents - means) ** 2 * (-log_variances).exp()
    return -0.5 * (squares + log_variances + _LOG_TWO_PI).sum(dim=1)


def log_aggregate(latents: Tensor, means: Tensor, log_variances: Tensor, own: Tensor | None = None) -> Tensor:
    """Return the log-density (M,) float64 of latents (M, D) float64 under a mixture of N diagonal Gaussians.

    `own` (N,) is the log-density of each row under the Gaussian of its row, if the latents are one draw of each.
    """
    mean, log_variance = means.double(), log_variances.double()
    precision = (-log_variance).exp()
    # The squared distance to all Gaussians by matrix products: (z - m)^2 p = z^2 p - 2 z m p + m^2 p. Where variances
    # are tiny, as with a tiny weight of the KL, the three terms are huge and their rounding errors are as large as the
    # sum. The sum is smallest, and decides, for the draw's own Gaussian, which `own` replaces.
    centre = mean.mean(dim=0)
    mean, latents = mean - centre, latents - centre
    constant = (mean**2 * precision + log_variance + _LOG_TWO_PI).sum(dim=1)
    found = []
    for rows in torch.arange(len(latents), device=latents.device).split(_ROWS):
        part = latents[rows]
        squares = part**2 @ precision.T - 2 * part @ (mean * precision).T + constant
        densities = -0.5 * squares
        if own is not None:
            densities[torch.arange(len(rows), device=rows.device), rows] = own[rows]
        found.append(densities.logsumexp(dim=1))
    return torch.cat(found) - math.log(len(means))
