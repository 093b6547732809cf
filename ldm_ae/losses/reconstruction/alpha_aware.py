"""The error of images with alpha, in which colour counts as much as it is visible.

Source: the alpha-blended pixel reconstruction of Wang et al., AlphaVAE: Unified End-to-End RGBA Image Reconstruction
and Generation with Alpha-Aware Representation Learning, arXiv 2507.09308, section 3: the expected error of images over
a background. They take the expectation over the colours of a data set; here it is over black and white, whose
difference is the alpha itself, so that both together determine everything that is visible:

    d(x, x̂) = (e(x over black, x̂ over black) + e(x over white, x̂ over white)) / 2    for each colour
    d(x, x̂) = w e(α, α̂)                                                              for alpha

with the error e of an element, c over b = a c + (1 - a) b, and the opacity a = (α + 1) / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views.composite import opaque
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss
from ldm_ae.losses.reconstruction.l1 import L1
from ldm_ae.losses.reconstruction.likelihood import refuse_likelihood


class AlphaAware(ReconstructionLoss):
    """The error over black and white, and that of alpha, for rgba images. Hidden colour does not count.

    Args:
        reconstruction: The error e of an element; null is L1.
        alpha_weight: w, the weight of alpha's own error.
    """

    short_names = ("alpha",)

    def __init__(self, *, reconstruction: ReconstructionLoss | None = None, alpha_weight: float = 1.0):
        if not 0 <= alpha_weight < float("inf"):
            raise UserError(f"AlphaAware: expected alpha_weight of at least 0, got {alpha_weight}")
        self.reconstruction = L1() if reconstruction is None else reconstruction
        self.alpha_weight = alpha_weight
        refuse_likelihood(self.reconstruction, "AlphaAware.reconstruction")

    def check(self, pixels: PixelSpec) -> None:
        if pixels.meaning != "rgba":
            raise UserError(f"AlphaAware needs rgba images, but the model uses {pixels}; choose l1, l2 or charbonnier")

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        black, white = (
            self.reconstruction(opaque(reconstructions, name), opaque(pixel_values, name))
            for name in ("black", "white")
        )
        alpha = self.reconstruction(reconstructions[:, 3:], pixel_values[:, 3:])
        return torch.cat([(black + white) / 2, self.alpha_weight * alpha], dim=1)
