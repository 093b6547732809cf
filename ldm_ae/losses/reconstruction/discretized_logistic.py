"""The probability of an image's levels under a logistic distribution.

Source: Kingma et al., arXiv 1606.04934, section 5.2, and Salimans et al., PixelCNN++, arXiv 1701.05517, equation 2.
With the step δ between two levels in [-1, 1] and one learned scale s,

    p(x | x̂) = sigmoid((x + δ/2 - x̂) / s) - sigmoid((x - δ/2 - x̂) / s)

where the lowest level extends to -∞ and the highest to ∞. Published code clamps the difference and approximates small
ones by the density. Here it is exact, by

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))

whose logarithm is a sum that neither cancels nor overflows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.losses.reconstruction.likelihood import Likelihood


class DiscretizedLogistic(Likelihood):
    """Probabilities of the 2^bits levels of each element; bits per dimension are -log2 p per element.

    Pixel values are rounded to the nearest level.

    Args:
        bits: Bits of a level.
        scale: s in units of pixel values; the initial one if it is learned. None is that of the model that a run starts
            from, if it was trained with this likelihood, else 0.1.
        learned: Whether s is learned.
    """

    short_names = ("logistic",)
    is_discrete = True

    def __init__(self, *, bits: int = 8, scale: float | None = None, learned: bool = True):
        super().__init__()
        if not 1 <= bits <= 16:
            raise UserError(f"DiscretizedLogistic: expected bits from 1 to 16, got {bits}")
        given = scale is not None
        scale = 0.1 if scale is None else scale
        if not 0 < scale < math.inf:
            raise UserError(f"DiscretizedLogistic: expected a scale above 0, got {scale}")
        self.bits, self.learned = bits, learned
        self.log_scale: Tensor
        self.set_scale("log_scale", math.log(scale), learned=learned, given=given)

    @property
    def init_args(self) -> dict[str, Any]:
        return {"bits": self.bits, "scale": math.exp(self.log_scale.item()), "learned": self.learned}

    def check(self, pixels: PixelSpec) -> None:
        super().check(pixels)
        if pixels.bits < self.bits:
            has = f"{pixels.bits} bits" if pixels.bits else "floating point, which has no levels"
            raise UserError(f"DiscretizedLogistic: expected images of at least {self.bits} bits, got {has}")

    def element_log_prob(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        count = 2**self.bits - 1
        level = ((pixel_values + 1) / 2 * count).round()
        offset, inverse = level / count * 2 - 1 - reconstructions, torch.exp(-self.log_scale)
        upper, lower = (offset + 1 / count) * inverse, (offset - 1 / count) * inverse
        is_lowest, is_highest = level <= 0, level >= count
        log_prob = torch.where(is_highest, 0.0, F.logsigmoid(upper)) + torch.where(is_lowest, 0.0, F.logsigmoid(-lower))
        between = torch.log(-torch.expm1(-2 / count * inverse))
        return log_prob + torch.where(is_lowest | is_highest, 0.0, between)

    def draw(self, reconstructions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        count = 2**self.bits - 1
        uniform = torch.empty_like(reconstructions).uniform_(generator=generator)
        tiny = torch.finfo(uniform.dtype).tiny
        logistic = uniform.clamp(min=tiny).log() - (1 - uniform).clamp(min=tiny).log()
        values = reconstructions + self.log_scale.exp().detach() * logistic
        return ((values.clamp(-1, 1) + 1) / 2 * count).round() / count * 2 - 1
