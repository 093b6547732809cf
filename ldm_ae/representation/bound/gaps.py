"""The parts of the gap between log p(x) and the bound. Source: Cremer et al., Inference Suboptimality in Variational
Autoencoders, arXiv 1801.03558."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.models import Autoencoder, GaussianPosterior
from ldm_ae.representation.bound.densities import LogLikelihood, gaussian_posterior, likelihood_of


class Gaps(NamedTuple):
    """log p(x) and two bounds on it, (B,) in nats."""

    log_likelihood: Tensor
    """Reference for log p(x)."""
    optimal_elbo: Tensor
    """Bound of the best diagonal Gaussian for each image."""
    encoder_elbo: Tensor
    """Bound of the encoder's Gaussian."""

    @property
    def approximation(self) -> Tensor:
        """Gap because no diagonal Gaussian is the posterior, (B,)."""
        return self.log_likelihood - self.optimal_elbo

    @property
    def amortization(self) -> Tensor:
        """Gap because one encoder serves all images, (B,)."""
        return self.optimal_elbo - self.encoder_elbo

    @property
    def total(self) -> Tensor:
        """The sum of both: KL(q(z|x) || p(z|x)) if the reference is exact, (B,)."""
        return self.log_likelihood - self.encoder_elbo


def optimal_posterior(
    model: Autoencoder, pixel_values: Tensor, *, steps: int = 500, learning_rate: float = 0.02, samples: int = 8,
    seed: int = 0,
) -> GaussianPosterior:  # fmt: skip
    """Return the diagonal Gaussian with the best bound for each image, found by Adam from the encoder's on.

    Args:
        model: A model with a likelihood and Gaussian posteriors.
        pixel_values: (B, C, H, W) in [-1, 1], on the model's device.
        steps: Steps of Adam. The learning rate falls to 0 by a cosine.
        learning_rate: First learning rate of means and log-variances.
        samples: Number of draws for each image and step, in pairs of opposite noise.
        seed: Seed of the draws.

    Raises:
        UserError: The model has no likelihood or no Gaussian posteriors.
    """
    with likelihood_of(model) as decoded, torch.enable_grad():
        moments = gaussian_posterior(model, pixel_values).moments.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([moments], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator(pixel_values.device).manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            (-_bound(decoded, GaussianPosterior(moments), pixel_values, samples, generator).sum()).backward()
            optimizer.step()
            schedule.step()
    return GaussianPosterior(moments.detach())


def gaps(
    model: Autoencoder, pixel_values: Tensor, log_likelihood: Tensor, *, steps: int = 500, learning_rate: float = 0.02,
    samples: int = 8, evaluation_samples: int = 200, seed: int = 0,
) -> Gaps:  # fmt: skip
    """Split the gap between a reference for log p(x) and the encoder's bound into approximation and amortization.

    Both bounds are measured with the same fresh draws.

    Args:
        model: A model with a likelihood and Gaussian posteriors.
        pixel_values: (B, C, H, W) in [-1, 1], on the model's device.
        log_likelihood: (B,) reference in nats: the larger one of `ais` and `iwae`, as in the paper.
        steps: As in `optimal_posterior`.
        learning_rate: As in `optimal_posterior`.
        samples: As in `optimal_posterior`.
        evaluation_samples: Number of draws that measure each bound.
        seed: Seed of all draws.

    Raises:
        UserError: The model has no likelihood or no Gaussian posteriors.
    """
    best = optimal_posterior(
        model, pixel_values, steps=steps, learning_rate=learning_rate, samples=samples, seed=seed
    )  # fmt: skip
    with likelihood_of(model) as decoded, torch.no_grad():
        bounds = []
        for posterior in (best, gaussian_posterior(model, pixel_values)):
            generator = torch.Generator(pixel_values.device).manual_seed(seed + 1)
            bounds.append(_bound(decoded, posterior, pixel_values, evaluation_samples, generator))
    return Gaps(log_likelihood, *bounds)


def _bound(
    log_likelihood: LogLikelihood, posterior: GaussianPosterior, pixel_values: Tensor, samples: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Return the bound (B,) with draws in pairs of opposite noise, which cancel the terms that are odd in it."""
    mean = posterior.mean
    total = torch.zeros(len(mean), device=mean.device)
    pairs = max(samples // 2, 1)
    for _ in range(pairs):
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        latents = torch.cat([posterior.sample(noise=noise), posterior.sample(noise=-noise)])
        total = total + log_likelihood(latents, pixel_values.repeat(2, 1, 1, 1)).view(2, -1).mean(dim=0)
    return total / pairs - posterior.regularization()["kl"]
