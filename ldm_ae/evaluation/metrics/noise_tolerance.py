"""What a decoder makes of inexact latents, such as those of a diffusion model.

Source: Yang et al., Latent Denoising Makes Good Tokenizers, arXiv 2507.15856, section 1: latents that a diffusion model
gives deviate from those of images by noise that is left, so that a decoder must tolerate it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.core.seeding import seeded_noise
from ldm_ae.evaluation.metrics._of_model import ModelMetric
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.evaluation.metrics.psnr import psnr
from ldm_ae.models import Autoencoder

LEVELS = (0.1, 0.3)
"""Standard deviations of the noise, in units of scaled latents, whose own is about 1."""


def _key(level: float) -> str:
    return f"psnr_noise_{level}"


class NoiseTolerance(ModelMetric):
    """PSNR of the images that latents with added noise give: of the posterior's mode, scaled, plus noise of each level.

    The noise of an image depends on its position in the data set alone. Each level costs another decoding.
    """

    name = "noise_tolerance"
    group = "latents"
    label = "Tolerance of noise"
    explanation = "PSNR of reconstructions from latents with added noise."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        _key(level): ScoreInfo(
            label=f"PSNR with noise of {level}", direction="higher", unit="dB", decimals=2,
            explanation=f"PSNR of reconstructions from scaled latents with noise of standard deviation {level}.",
        )
        for level in LEVELS
    }  # fmt: skip

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._images = 0

    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return (B,) PSNR at each level."""
        scaled = model.scale(latents).float()
        seeds = torch.arange(self._images, self._images + len(scaled))
        noise = seeded_noise(seeds, tuple(scaled.shape[1:])).to(scaled)
        self._images += len(scaled)
        return {
            _key(level): psnr(
                model.decode(model.unscale(scaled + level * noise).to(latents)), pixel_values, model.pixel_spec
            )
            for level in LEVELS
        }
