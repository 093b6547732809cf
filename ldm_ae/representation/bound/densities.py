"""The densities of a variational autoencoder: prior, likelihood and posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.losses import Likelihood
from ldm_ae.models import Autoencoder, GaussianPosterior

LOG_TWO_PI = math.log(2 * math.pi)


LogLikelihood = Callable[[Tensor, Tensor], Tensor]
"""log p(x|z) of each image in nats, (B,), for latents (B, C, h, w) and images (B, C, H, W)."""


def require_bound(model: Autoencoder) -> Likelihood:
    """Return the model's likelihood; raise `UserError` unless log p(x) is defined and posteriors bound it."""
    likelihood = model.likelihood
    if likelihood is None:
        raise UserError(
            "the model has no likelihood, so that log p(x) is not defined; train with objective.reconstruction "
            "bernoulli, gaussian or logistic"
        )
    if not model.has_moments:
        raise UserError("the model's posteriors are not Gaussian, so that they do not bound log p(x)")
    return likelihood


def gaussian_posterior(model: Autoencoder, pixel_values: Tensor) -> GaussianPosterior:
    """Return q(z|x) of images (B, C, H, W) under a model of Gaussian posteriors."""
    with torch.no_grad():
        posterior = model.encode(pixel_values)
    assert posterior.moments is not None
    return GaussianPosterior(posterior.moments)


def log_normal(latents: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | float = 0.0) -> Tensor:
    """Return the log-density (B,) of latents (B, C, h, w) under a diagonal Gaussian; by default, the prior N(0, 1)."""
    log_variance = torch.as_tensor(log_variance, dtype=latents.dtype, device=latents.device)
    squares = (latents - mean).square() * (-log_variance).exp()
    return -0.5 * (squares + log_variance + LOG_TWO_PI).flatten(1).sum(dim=1)


def has_levels(model: Autoencoder) -> bool:
    """Return whether p(x) of the model is, or can be converted to, a probability of integer levels."""
    return require_bound(model).is_discrete or model.pixel_spec.bits > 0


def bits_per_dimension(model: Autoencoder, nats: Tensor, pixel_values: Tensor) -> Tensor:
    """Return -log2 p(x) of each image divided by its number of values.

    A density is converted to a probability of levels of the images' bits by the distance of two levels, 2 / 255 in
    8 bits. This is exact for densities that are nearly constant between levels; narrower ones give numbers below those
    of any code.

    Args:
        model: The model with a likelihood.
        nats: (B,) log p(x), or a bound on it.
        pixel_values: The images, (B, C, H, W).

    Raises:
        UserError: The likelihood is a density and the images are not of integer levels.
    """
    bits = model.pixel_spec.bits
    if not has_levels(model):
        raise UserError(f"bits per dimension need images of integer levels, but the images are {model.pixel_spec}")
    width = 1.0 if require_bound(model).is_discrete else 2.0 / (2**bits - 1)
    return -(nats / pixel_values[0].numel() + math.log(width)) / math.log(2)


@contextmanager
def likelihood_of(model: Autoencoder) -> Iterator[LogLikelihood]:
    """Give log p(x|z) of a model within the context; the model is in eval mode and only latents have gradients.

    Raises:
        UserError: The model has no likelihood or no Gaussian posteriors.
    """
    likelihood = require_bound(model).requires_grad_(False)
    modes = {module: module.training for module in model.modules()}
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield lambda latents, pixel_values: likelihood.log_prob(model.decode(latents), pixel_values)
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
