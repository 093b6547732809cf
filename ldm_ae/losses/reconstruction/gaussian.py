"""The likelihood of real-valued images with one variance. Source: arXiv 1312.6114, appendix C.2.

    log p(x | x̂) = - (x - x̂)^2 / 2σ² - log σ - log(2π) / 2

One σ for all elements, learned with the networks: Rybkin et al., Simple and Effective VAE Training with Calibrated
Decoders (sigma-VAE), arXiv 2006.13202.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.losses.reconstruction.likelihood import Likelihood


class Gaussian(Likelihood):
    """The density of pixel values in [-1, 1]: of the values in [0, 1] it is higher by log 2 for each element.

    Args:
        scale: σ in units of pixel values; the initial one if it is learned. None is that of the model that a run starts
            from, if it was trained with this likelihood, else 0.25.
        learned: Whether σ is learned.
    """

    is_discrete = False

    def __init__(self, *, scale: float | None = None, learned: bool = True):
        super().__init__()
        given = scale is not None
        scale = 0.25 if scale is None else scale
        if not 0 < scale < math.inf:
            raise UserError(f"Gaussian: expected a scale above 0, got {scale}")
        self.learned = learned
        self.log_variance: Tensor
        self.set_scale("log_variance", 2 * math.log(scale), learned=learned, given=given)

    @property
    def init_args(self) -> dict[str, Any]:
        return {"scale": math.exp(self.log_variance.item() / 2), "learned": self.learned}

    def element_log_prob(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        squares = (pixel_values - reconstructions).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + math.log(2 * math.pi))

    def draw(self, reconstructions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.empty_like(reconstructions).normal_(generator=generator)
        return reconstructions + torch.exp(self.log_variance / 2).detach() * noise
