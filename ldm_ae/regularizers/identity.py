"""The regularizer that changes nothing: latents are decoded as they are."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.models import Posterior
from ldm_ae.regularizers.interface import Regularized, Regularizer


class Identity(Regularizer):
    """Unchanged latents, with the encoded images as the target."""

    short_names = ("none",)

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        return Regularized(latents, pixel_values)
