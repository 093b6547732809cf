"""Rate and distortion of a variational autoencoder. Source: Alemi et al., Fixing a Broken ELBO, arXiv 1711.00464."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import seeded_noise
from ldm_ae.models import Autoencoder
from ldm_ae.representation._packages import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """One point of a rate-distortion curve."""

    name: str
    """Label of the point, such as a weight of the KL or a quality."""
    rate: float
    """Mean bits per pixel."""
    distortion: float
    """Mean squared error of the pixel values, which are in [-1, 1]."""

    @property
    def psnr(self) -> float:
        """10 log10(4 / distortion) in dB: PSNR of the mean error, the peak being 2."""
        return 10 * math.log10(4 / self.distortion) if self.distortion > 0 else math.inf


def rate_distortion(name: str, model: Autoencoder, batches: Iterable[Tensor], *, seed: int = 0) -> Point:
    """Return the rate and distortion of a model of Gaussian posteriors over images.

    The rate is the KL of the posterior to N(0, 1), the cost of sending one draw by relative entropy coding. The
    distortion is that of the reconstruction from a draw, because the mode cannot be sent at this rate.

    Args:
        name: Label of the point.
        model: A model with Gaussian posteriors, in eval mode.
        batches: Images (B, C, H, W) in [-1, 1], on the model's device.
        seed: Seed of the draws.

    Raises:
        UserError: The posteriors are not Gaussian, or there are no images.
    """
    if not model.has_moments:
        raise UserError(f"{name} has no Gaussian posteriors, so that the KL is not its rate")
    bits, errors, images = 0.0, 0.0, 0
    with torch.no_grad():
        for pixel_values in batches:
            posterior = model.encode(pixel_values)
            rate = posterior.rate()
            assert rate is not None
            seeds = torch.arange(seed + images, seed + images + len(pixel_values))
            noise = seeded_noise(seeds, tuple(posterior.mode().shape[1:])).to(pixel_values.device)
            reconstructions = model.decode(posterior.sample(noise=noise)).clamp(-1, 1)
            bits += float(rate.double().sum()) / pixel_values[0, 0].numel()
            errors += float((reconstructions - pixel_values).double().square().mean(dim=(1, 2, 3)).sum())
            images += len(pixel_values)
    if images == 0:
        raise UserError("rate and distortion need at least one image")
    return Point(name, bits / images, errors / images)


def rate_distortion_figure(curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Return a matplotlib figure of PSNR against rate, one line for each curve with its points' names.

    Args:
        curves: Points by the name of their curve, such as `beta-VAE` and `JPEG`.

    Raises:
        UserError: matplotlib is missing.
    """
    require_matplotlib("the rate-distortion figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="rate, bits per pixel", ylabel="PSNR of the mean error, dB", xscale="log")
    for label, points in curves.items():
        ordered = sorted(points, key=lambda point: point.rate)
        axes.plot([p.rate for p in ordered], [p.psnr for p in ordered], "o-", ms=4, lw=1, label=label)
        for point in ordered:
            axes.annotate(point.name, (point.rate, point.psnr), (4, -8), textcoords="offset points", fontsize=7)
    axes.legend()
    return figure
