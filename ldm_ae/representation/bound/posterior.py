"""The posterior p(z|x) of one image by Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound.densities import gaussian_posterior, likelihood_of, log_normal
from ldm_ae.representation.bound.hamiltonian import Hamiltonian


class Draws(NamedTuple):
    """Draws of the posterior of one image."""

    latents: Tensor
    """(chains, draws, C, h, w)."""
    acceptance: float
    """Mean acceptance rate after the warm-up."""
    r_hat: Tensor
    """(C, h, w), the potential scale reduction of each latent over half chains; above about 1.05, the chains disagree
    and need more draws. Source: Gelman et al., Bayesian Data Analysis, section 11.4."""


def posterior_draws(
    model: Autoencoder, pixel_values: Tensor, *, draws: int = 1000, chains: int = 16, warmup: int = 300,
    leapfrog_steps: int = 10, seed: int = 0,
) -> Draws:  # fmt: skip
    """Draw from the posterior of one image.

    The chains start at draws of the encoder's Gaussian. The step size adapts during the warm-up and is fixed after it.

    Args:
        model: A model with a likelihood and Gaussian posteriors.
        pixel_values: (1, C, H, W) in [-1, 1], on the model's device.
        draws: Number of draws of each chain that are kept.
        chains: Number of chains.
        warmup: Number of transitions before.
        leapfrog_steps: Decodings and gradients of a transition.
        seed: Seed of the chains.

    Raises:
        UserError: The model has no likelihood or no Gaussian posteriors, or there is not one image.
    """
    if len(pixel_values) != 1:
        raise UserError(f"the posterior is drawn for one image, got {len(pixel_values)}")
    with likelihood_of(model) as log_likelihood, torch.no_grad():
        posterior = gaussian_posterior(model, pixel_values)
        generator = torch.Generator(pixel_values.device).manual_seed(seed)
        images = pixel_values.repeat(chains, 1, 1, 1)
        noise = torch.randn((chains, *posterior.mean.shape[1:]), generator=generator, device=images.device)
        latents = posterior.sample(noise=noise)
        sampler = Hamiltonian(1, leapfrog_steps, generator)
        kept = []
        for number in range(warmup + draws):
            latents = sampler.move(latents, lambda z: log_normal(z) + log_likelihood(z, images), adapt=number < warmup)
            if number == warmup - 1:
                sampler.accepted.clear()
            if number >= warmup:
                kept.append(latents)
    found = torch.stack(kept, dim=1)
    return Draws(found, sampler.acceptance(), r_hat(found))


def r_hat(draws: Tensor) -> Tensor:
    """Return the potential scale reduction (...,) of draws (chains, draws, ...), each chain cut in two halves."""
    half = draws.shape[1] // 2
    parts = torch.cat([draws[:, :half], draws[:, half : 2 * half]]).double()
    within = parts.var(dim=1).mean(dim=0)
    between = half * parts.mean(dim=1).var(dim=0)
    return (((half - 1) / half * within + between / half) / within).sqrt().float()
