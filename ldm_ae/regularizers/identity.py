"""No regularizer: latents are decoded as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.regularizers.interface import Regularized, Regularizer


class Identity(Regularizer):
    """Latents as they were drawn, compared with the images that were encoded."""

    def forward(self, posterior: Any, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        return Regularized(latents, pixel_values)
