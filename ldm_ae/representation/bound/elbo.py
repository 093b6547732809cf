"""The evidence lower bound. Source: Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114, eq. 7."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.seeding import seeded_noise
from ldm_ae.models import Autoencoder
from ldm_ae.representation.bound.densities import gaussian_posterior, likelihood_of


class ELBO(NamedTuple):
    """The bound of each image and its two terms, (B,) float32 in nats."""

    log_likelihood: Tensor
    """Mean of log p(x|z) over draws z of the posterior."""
    kl: Tensor
    """KL(q(z|x) || N(0, 1)), in closed form."""

    @property
    def nats(self) -> Tensor:
        """The bound: at most log p(x) in expectation over the draws."""
        return self.log_likelihood - self.kl


def elbo(model: Autoencoder, pixel_values: Tensor, *, samples: int = 1, seeds: Tensor | None = None) -> ELBO:
    """Return the evidence lower bound of images, with the KL term in closed form.

    Args:
        model: A model with a likelihood and Gaussian posteriors.
        pixel_values: (B, C, H, W) in [-1, 1], on the model's device.
        samples: Number of draws of each posterior.
        seeds: (B,) int64, seeds of each image's draws; None counts from 0.

    Raises:
        UserError: The model has no likelihood or no Gaussian posteriors.
    """
    with likelihood_of(model) as log_likelihood, torch.no_grad():
        posterior = gaussian_posterior(model, pixel_values)
        chosen = torch.arange(len(pixel_values)) if seeds is None else seeds
        noise = seeded_noise(chosen, (samples, *posterior.mean.shape[1:])).to(posterior.mean)
        found = sum(log_likelihood(posterior.sample(noise=draw), pixel_values) for draw in noise.unbind(dim=1))
        assert isinstance(found, Tensor)
        return ELBO(found / samples, posterior.regularization()["kl"])
