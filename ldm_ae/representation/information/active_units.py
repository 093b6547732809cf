"""Latents that vary with the image. Source: Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519."""

from __future__ import annotations

from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""A latent is active if the variance of its posterior mean over the images is above this."""


def active_units(means: Tensor) -> Tensor:
    """Return which latents are active, (D,) bool, from the posterior means of N images, (N, D)."""
    return means.double().var(dim=0, correction=0) > ACTIVE_VARIANCE
