"""What a decoder makes of inexact latents, such as those of a diffusion model.

Source: Yang et al., Latent Denoising Makes Good Tokenizers, arXiv 2507.15856, section 1: latents that a diffusion model
gives deviate from those of images by noise that is left, so that a decoder must tolerate it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.interface import CannotScoreError, MeanMetric, ScoreInfo, Setting
from ldm_ae.evaluation.metrics.psnr import psnr
from ldm_ae.models import Autoencoder, Posterior

LEVELS = (0.1, 0.3)
"""Standard deviations of the noise, in units of scaled latents, whose own is about 1."""


def _key(level: float) -> str:
    return f"psnr_noise_{level}"


class NoiseTolerance(MeanMetric):
    """PSNR of the images that latents with added noise give: of the posterior's mode, scaled, plus noise of each level.

    The noise of an image depends on its position in the data set alone. Each level costs another decoding.
    """

    name = "noise_tolerance"
    label = "Tolerance of noise"
    explanation = "PSNR of reconstructions from latents with added noise."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        _key(level): ScoreInfo(
            label=f"PSNR with noise of {level}", direction="higher", unit="dB", decimals=2,
            explanation=f"PSNR of reconstructions from scaled latents with noise of standard deviation {level}.",
        )
        for level in LEVELS
    }  # fmt: skip
    compares_images = False

    def __init__(self) -> None:
        self._model: Autoencoder | None = None
        self.reset()

    def prepare(self, setting: Setting) -> None:
        """Keep the model."""
        self._model = setting.model

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._images = 0

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch.

        Raises:
            CannotScoreError: There is no model.
        """
        model = self._model
        if model is None or posterior is None:
            raise CannotScoreError(f"{self.label} needs the latents of a model")
        mode = posterior.mode()
        scaled = model.scale(mode).float()
        noise = torch.stack(
            [
                torch.randn(scaled.shape[1:], generator=torch.Generator().manual_seed(self._images + i))
                for i in range(len(scaled))
            ]
        ).to(scaled)
        self._images += len(scaled)
        found = {}
        for level in LEVELS:
            latents = model.unscale(scaled + level * noise).to(mode)
            found[_key(level)] = psnr(model.decode(latents), pixel_values)
        return self.keep(found)
