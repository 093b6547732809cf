"""Annealed importance sampling of log p(x), the reference for bounds.

Sources: Neal, Annealed Importance Sampling, arXiv physics/9803008; for decoders, Wu et al., On the Quantitative
Analysis of Decoder-Based Generative Models, arXiv 1611.04273.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound.densities import gaussian_posterior, likelihood_of, log_normal
from ldm_ae.representation.bound.hamiltonian import Hamiltonian

Schedule = Literal["linear", "sigmoid"]
SIGMOID_RANGE = 4.0
"""The sigmoid schedule takes the logistic function from -4 to 4, scaled to [0, 1]."""


class AIS(NamedTuple):
    """Estimates of log p(x) by annealed chains."""

    log_weights: Tensor
    """(chains, B) float32, log of the importance weight of each chain, in nats."""
    acceptance: float
    """Mean acceptance rate of the Hamiltonian steps."""

    @property
    def nats(self) -> Tensor:
        """Log of the mean weight, (B,). The mean weight is an unbiased estimate of p(x), so that this is at most
        log p(x) in expectation."""
        return self.log_weights.logsumexp(dim=0) - math.log(len(self.log_weights))

    @property
    def effective_chains(self) -> Tensor:
        """Effective number of chains, (B,), from 1 to all; near 1, one weight decides, and more steps are needed."""
        return (2 * self.log_weights.logsumexp(dim=0) - (2 * self.log_weights).logsumexp(dim=0)).exp()


def temperatures(steps: int, schedule: Schedule = "sigmoid") -> Tensor:
    """Return the inverse temperatures (steps + 1,) float64 from 0 to 1.

    Raises:
        UserError: The schedule is unknown, or there is no step.
    """
    if steps < 1:
        raise UserError(f"annealing needs at least 1 step, got {steps}")
    places = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if schedule == "linear":
        return places
    if schedule != "sigmoid":
        raise UserError(f"the schedule is '{schedule}'; expected {' or '.join(get_args(Schedule))}")
    values = torch.sigmoid(SIGMOID_RANGE * (2 * places - 1))
    return (values - values[0]) / (values[-1] - values[0])


def ais(
    model: Autoencoder, pixel_values: Tensor, *, steps: int = 500, chains: int = 16, leapfrog_steps: int = 10,
    schedule: Schedule = "sigmoid", seed: int = 0,
) -> AIS:  # fmt: skip
    """Anneal chains from the prior p(z) to p(z) p(x|z), which is the posterior up to p(x).

    The densities between are p(z) p(x|z)^t. Each step adds the change of the log-density to the chain's log weight and
    moves the chain by one Hamiltonian trajectory at the new density. The encoder is not used, so that the estimate does
    not depend on how good it is.

    Args:
        model: A model with a likelihood and Gaussian posteriors.
        pixel_values: (B, C, H, W) in [-1, 1], on the model's device. B times `chains` images are decoded at once.
        steps: Number of densities after the prior.
        chains: Number of chains of each image.
        leapfrog_steps: Decodings and gradients of a trajectory.
        schedule: `linear`, or `sigmoid`, which takes small steps near both ends.
        seed: Seed of the chains.

    Raises:
        UserError: The model has no likelihood or no Gaussian posteriors, or the schedule is not valid.
    """
    levels = temperatures(steps, schedule)
    with likelihood_of(model) as log_likelihood, torch.no_grad():
        shape = gaussian_posterior(model, pixel_values[:1]).mean.shape[1:]
        generator = torch.Generator(pixel_values.device).manual_seed(seed)
        images = pixel_values.repeat(chains, 1, 1, 1)
        latents = torch.randn((len(images), *shape), generator=generator, device=images.device)
        sampler = Hamiltonian(len(pixel_values), leapfrog_steps, generator)
        weights = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for before, level in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            weights += (level - before) * log_likelihood(latents, images).double()
            latents = sampler.move(
                latents,
                lambda z, t=level: log_normal(z) + t * log_likelihood(z, images),  # type: ignore[misc]
            )
        return AIS(weights.float().view(chains, -1), sampler.acceptance())
