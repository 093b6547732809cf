"""The importance-weighted bound. Source: Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_ae.core.seeding import seeded_noise
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound.densities import gaussian_posterior, likelihood_of, log_normal

CHUNK = 1000
"""Number of latents that are decoded at once."""


def iwae(
    model: Autoencoder, pixel_values: Tensor, *, k: int = 5000, seeds: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    """Return log (1/k) sum_i p(x, z_i) / q(z_i|x) with k draws z_i of the posterior, in nats, (B,) float32.

    In expectation it is at most log p(x) and grows with k; with k = 1 it is an estimate of the evidence lower bound.

    Args:
        model: A model with a likelihood and Gaussian posteriors.
        pixel_values: (B, C, H, W) in [-1, 1], on the model's device.
        k: Number of draws for each image.
        seeds: (B,) int64, seeds of each image's draws; None counts from 0.
        chunk: Number of latents that are decoded at once.

    Raises:
        UserError: The model has no likelihood or no Gaussian posteriors.
    """
    found = []
    with likelihood_of(model) as log_likelihood, torch.no_grad():
        posterior = gaussian_posterior(model, pixel_values)
        chosen = torch.arange(len(pixel_values)) if seeds is None else seeds
        for row, seed in enumerate(chosen):
            mean, log_variance = posterior.mean[row : row + 1], posterior.log_variance[row : row + 1]
            noise = seeded_noise(seed[None], (k, *mean.shape[1:]))[0].to(mean)
            weights = []
            for part in noise.split(chunk):
                latents = mean + torch.exp(0.5 * log_variance) * part
                images = pixel_values[row : row + 1].expand(len(part), -1, -1, -1)
                joint = log_likelihood(latents, images) + log_normal(latents)
                weights.append(joint - log_normal(latents, mean, log_variance))
            found.append(torch.cat(weights).logsumexp(dim=0) - math.log(k))
    return torch.stack(found)
