"""How the power of latents falls with spatial frequency: latents with much power at high ones are hard to diffuse.

Source: Skorokhodov et al., Improving the Diffusability of Autoencoders, arXiv 2502.14831, section 3, which compares the
spectra of latents and of images by the discrete cosine transform. It implies a reflection at the borders, so that these
add no high frequencies, as they would to a Fourier spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, Metric, ScoreInfo, Scores
from ldm_ae.models import Posterior

BINS = 16
NYQUIST = 0.5
"""Highest frequency of a row or column, in cycles per latent."""
HIGH = NYQUIST / 2
SMALLEST_SIDE = 4
_ROUNDING = 1e-24
"""Share of the power in float64 below which it is rounding: the latents are constant."""


class LatentSpectrum(Metric):
    """Slope of the radially averaged power spectrum, and the share of power at high frequencies.

    The spectrum is that of the posterior's mode without its mean, of each image and channel, normalized to a power of 1
    each, so that all channels count equally.
    """

    name = "latent_spectrum"
    group = "latents"
    label = "Latent spectrum"
    explanation = "Power of latents over spatial frequencies."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "latent_spectrum_slope": ScoreInfo(
            label="Slope of the latent spectrum",
            explanation="Exponent of a power law fitted to the power over frequencies up to Nyquist: white noise has "
            "0, photos about -2.",
        ),
        "latent_high_frequencies": ScoreInfo(
            label="Power of latents at high frequencies", direction="lower",
            explanation=f"Share of the power above {HIGH} cycles per latent; white noise has {1 - math.pi / 16:.2f}.",
        ),
    }  # fmt: skip
    compares_images = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard all images."""
        self._power = torch.zeros(BINS, dtype=torch.float64)
        self._frequency = torch.zeros(BINS, dtype=torch.float64)
        self._count = torch.zeros(BINS, dtype=torch.float64)
        self._high: list[float] = []

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add the spectra of a batch's latents.

        Raises:
            CannotScoreError: There are no latents, or they have a side below `SMALLEST_SIDE`.
        """
        if posterior is None:
            raise CannotScoreError(f"{self.label} needs the latents of a model")
        latents = posterior.mode().detach().to("cpu", torch.float64)
        height, width = latents.shape[-2:]
        if min(height, width) < SMALLEST_SIDE:
            raise CannotScoreError(
                f"{self.label} needs latents of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, got {height}x{width}"
            )
        power, frequency = normalized_power(latents), frequencies(height, width)
        self._high += power[..., frequency > HIGH].sum(dim=-1).mean(dim=1).tolist()
        # The constant has no frequency; those above Nyquist exist on diagonals only.
        inside = (frequency > 0) & (frequency <= NYQUIST)
        bins = ((frequency[inside] / NYQUIST * BINS).ceil() - 1).long()
        # Power of one coefficient, relative to that of white noise.
        values = power[..., inside].mean(dim=1).sum(dim=0) * (height * width - 1)
        self._power.index_add_(0, bins, values)
        self._frequency.index_add_(0, bins, frequency[inside] * len(latents))
        self._count.index_add_(0, bins, torch.full_like(values, len(latents)))
        return {}

    def profile(self) -> tuple[list[float], list[float]]:
        """Return frequencies, in cycles per latent, and the mean power at them, relative to that of white noise."""
        some = self._count > 0
        return (self._frequency[some] / self._count[some]).tolist(), (self._power[some] / self._count[some]).tolist()

    def compute(self) -> Scores:
        """Return both numbers; CannotScoreError for constant latents, which have no spectrum."""
        if not self._power.any():
            raise CannotScoreError(f"{self.label} needs latents that are not constant")
        frequency, power = (torch.tensor(values, dtype=torch.float64).log() for values in self.profile())
        x = frequency - frequency.mean()
        slope = (x * (power - power.mean())).sum() / x.square().sum()
        return {
            "latent_spectrum_slope": float(slope), "latent_high_frequencies": sum(self._high) / len(self._high)
        }  # fmt: skip

    def details(self) -> Mapping[str, JSON]:
        """Return the radially averaged spectrum, which the slope summarizes: see `profile`."""
        frequency, power = self.profile()
        return {"cycles_per_latent": frequency, "power": power}


def normalized_power(latents: Tensor) -> Tensor:
    """Return the power of each coefficient of the cosine transform, (B, C, h, w), without the constant's; the sum over
    h and w is 1, or 0 for constant latents."""
    rows, columns = (_cosines(size).to(latents) for size in latents.shape[-2:])
    power = (rows @ latents @ columns.T).square()
    whole = power.sum(dim=(-2, -1), keepdim=True)
    power[..., 0, 0] = 0.0
    total = power.sum(dim=(-2, -1), keepdim=True)
    return torch.where(total > _ROUNDING * whole, power / total, 0.0)


def frequencies(height: int, width: int) -> Tensor:
    """Return the radial frequency of each coefficient, (height, width) float64, in cycles per latent."""
    rows, columns = (torch.arange(size, dtype=torch.float64) / (2 * size) for size in (height, width))
    return torch.hypot(rows[:, None], columns[None])


def _cosines(size: int) -> Tensor:
    """Return the orthonormal matrix of the discrete cosine transform of type 2, (size, size) float64."""
    positions = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * positions[:, None] * (positions[None] + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
