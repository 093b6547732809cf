"""The likelihood of binary images, and by custom of grey ones. Source: arXiv 1312.6114, appendix C.1.

A pixel value v in [-1, 1] stands for x = (v + 1) / 2 in [0, 1], and a reconstruction r for the probability p =
(r + 1) / 2 of white:

    log p(x | p) = x log p + (1 - x) log(1 - p)

A network decodes logits l and returns r = 2 sigmoid(l) - 1 = tanh(l / 2). For grey values x is taken as the probability
of white. This is the usual loss of the textbooks, but not the logarithm of a probability of grey images (Loaiza-Ganem
and Cunningham, arXiv 1907.06845).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm_ae.losses.reconstruction.likelihood import Likelihood

SMALLEST = 2.0**-15
"""The smallest probability of black and of white. float32 resolves r to 2^-24 near 1."""


class Bernoulli(Likelihood):
    """Probabilities of black and white pixels, of which the reconstruction is the mean.

    Probabilities below 2^-15, and reconstructions outside of [-1, 1], count as 2^-15. The logarithm of
    smaller ones continues along its tangent, so that the loss is finite and its gradient leads back.
    """

    is_discrete = True

    def __init__(self) -> None:
        super().__init__()

    @property
    def init_args(self) -> dict[str, Any]:
        return {}

    def element_log_prob(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        white = (pixel_values + 1) / 2
        return white * _log((1 + reconstructions) / 2) + (1 - white) * _log((1 - reconstructions) / 2)

    def draw(self, reconstructions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probability = ((1 + reconstructions) / 2).clamp(SMALLEST, 1 - SMALLEST)
        return torch.bernoulli(probability, generator=generator) * 2 - 1


def _log(probability: Tensor) -> Tensor:
    """Return the logarithm of probabilities, of those below `SMALLEST` along its tangent there."""
    below = (probability - SMALLEST).clamp(max=0) / SMALLEST
    return probability.clamp(SMALLEST, 1 - SMALLEST).log() + below
