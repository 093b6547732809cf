"""Noise on latents in training, which makes the decoder robust to inexact latents.

Source: Yang et al., Latent Denoising Makes Good Tokenizers (l-DeTok), arXiv 2507.15856, section 3.2, "interpolative
latent noise": z' = (1 - t) z + t ε with ε ~ N(0, γ² I) and t ~ U(0, 1) for each sample. The paper has γ = 3. RAE (arXiv
2510.11690) adds noise without the factor (1 - t); with interpolation an encoder cannot avoid the noise by making its
latents large.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Posterior
from ldm_ae.regularizers.interface import Regularized, Regularizer


class GaussianNoise(Regularizer):
    """z' = (1 - t) z + t γ ε, with ε standard normal and t uniform in [0, `max_fraction`), one t for each sample.

    The decoder learns to denoise; a decoder for clean latents is trained afterwards without the noise, with
    `training.trainable` for the decoder alone.

    Args:
        gamma: Standard deviation of the noise, in units of the unscaled latents.
        max_fraction: The largest fraction of noise, in (0, 1].
    """

    short_names = ("noise", "gaussian-noise")

    def __init__(self, *, gamma: float = 3.0, max_fraction: float = 1.0):
        super().__init__()
        if gamma <= 0 or not 0 < max_fraction <= 1:
            raise UserError(
                f"GaussianNoise: expected gamma above 0 and max_fraction in (0, 1], got {gamma} and {max_fraction}"
            )
        self.gamma, self.max_fraction = gamma, max_fraction

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        fraction = self.max_fraction * draws.uniform(1, 1, 1).to(latents)
        noise = draws.normal(*latents.shape[1:]).to(latents)
        return Regularized((1 - fraction) * latents + fraction * self.gamma * noise, pixel_values)
