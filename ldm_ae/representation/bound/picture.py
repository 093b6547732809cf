"""The posterior of one image beside the encoder's Gaussian, as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import GaussianPosterior
from ldm_ae.representation._packages import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plane(NamedTuple):
    """Draws and a Gaussian in two directions of latents."""

    points: Tensor
    """(N, 2) draws."""
    mean: Tensor
    """(2,) mean of the Gaussian."""
    covariance: Tensor
    """(2, 2) its covariance."""
    labels: tuple[str, str]


def plane(draws: Tensor, posterior: GaussianPosterior, latents: tuple[int, int] | None = None) -> Plane:
    """Project draws and the Gaussian of one image on two latents, or on the draws' first two principal directions.

    Args:
        draws: (..., C, h, w) draws of p(z|x).
        posterior: q(z|x) of the same image, moments (1, 2C, h, w).
        latents: Numbers of two latents in the flattened (C h w); None for the principal directions, which show where
            latents depend on each other.

    Raises:
        UserError: A latent does not exist, or there is only one.
    """
    points = draws.flatten(-3).flatten(0, -2).double()
    mean, variance = posterior.mean.flatten().double(), posterior.log_variance.flatten().double().exp()
    count = len(mean)
    if count < 2 or (latents is not None and not all(0 <= latent < count for latent in latents)):
        raise UserError(f"the picture needs two latents from 0 to {count - 1}, got {latents}")
    if latents is None:
        directions = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False).Vh[:2]
        labels = ("first principal direction of the draws", "second principal direction")
    else:
        directions = torch.eye(count, dtype=torch.float64)[list(latents)]
        labels = (f"latent {latents[0]}", f"latent {latents[1]}")
    covariance = directions @ variance.diag() @ directions.T
    return Plane(points @ directions.T, directions @ mean, covariance, labels)


def posterior_figure(draws: Tensor, posterior: GaussianPosterior, latents: tuple[int, int] | None = None) -> Figure:
    """Return a matplotlib figure of draws as points, with the encoder's Gaussian at one and two standard deviations.

    Args:
        draws: As in `plane`.
        posterior: As in `plane`.
        latents: As in `plane`.

    Raises:
        UserError: matplotlib is missing, or a latent does not exist.
    """
    require_matplotlib("the picture of the posterior")
    from matplotlib.figure import Figure

    shown = plane(draws.cpu(), GaussianPosterior(posterior.moments.cpu()), latents)
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*shown.points.T.numpy(), ".", ms=2, alpha=0.3, color="#4c72b0", label="p(z|x), Hamiltonian Monte Carlo")
    angles = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()])
    for deviations in (1, 2):
        style: dict[str, Any] = {"label": "q(z|x), one and two standard deviations"} if deviations == 1 else {}
        ellipse = shown.mean[:, None] + deviations * torch.linalg.cholesky(shown.covariance) @ circle
        axes.plot(*ellipse.numpy(), color="#c44e52", **style)
    axes.set(xlabel=shown.labels[0], ylabel=shown.labels[1])
    axes.legend(loc="upper right", fontsize=8)
    return figure
