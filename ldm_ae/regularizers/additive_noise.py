"""Noise added to latents in training, for a decoder whose encoder is frozen and cannot avoid the noise.

Source: Zheng et al., Diffusion Transformers with Representation Autoencoders (RAE), arXiv 2510.11690, section 4,
"noise-augmented decoding": z' = z + σ ε with ε ~ N(0, I). The paper draws σ from |N(0, τ²)|, its code uniformly from
[0, τ], which is done here; τ is 0.8. The code adds the noise to the encoder's tokens; here it is added to the latents,
which for `AutoencoderRAE` are normalized.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Posterior
from ldm_ae.regularizers.interface import Regularized, Regularizer


class AdditiveNoise(Regularizer):
    """z' = z + σ ε, with ε standard normal and σ uniform in [0, `tau`), one σ for each sample.

    With a trained encoder take `GaussianNoise`: an encoder can make its latents large, so that added noise is small.

    Args:
        tau: The largest standard deviation of the noise, in units of the unscaled latents.
    """

    short_names = ("additive-noise",)

    def __init__(self, *, tau: float = 0.8):
        super().__init__()
        if tau <= 0:
            raise UserError(f"AdditiveNoise: expected tau above 0, got {tau}")
        self.tau = tau

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        sigma = self.tau * draws.uniform(1, 1, 1).to(latents)
        return Regularized(latents + sigma * draws.normal(*latents.shape[1:]).to(latents), pixel_values)
