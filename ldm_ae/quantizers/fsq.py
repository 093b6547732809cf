"""Finite scalar quantization: every channel is rounded to one of a few levels, and their product is the codebook.

Source: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, arXiv 2309.15505, section 3.1 and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers.interface import Choice, Quantizer, straight_through

EPSILON = 1e-3
"""Margin that keeps the bounded value off the halfway points at both ends, as in the paper's code."""


class FSQ(Quantizer):
    """Channel i becomes one of levels[i] numbers spread evenly over [-1, 1] (from -1 to below 1 for an even count).

    The gradient reaches the encoder straight through the rounding and through the bounding tanh. There are no terms:
    nothing is learned, and equidistant codes need no regularization.

    Args:
        levels: Number of values of each channel, at least 3: with two, only latents below -3.8 reach the lower one.
            The paper recommends (8, 6, 5) for 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12,
            (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16.
    """

    straight_through: ClassVar[bool] = False

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)):
        super().__init__()
        if not levels or min(levels) < 3:
            raise UserError(
                f"FSQ: levels={tuple(levels)} must be one number of at least 3 per channel; for two values per "
                "channel use LFQ or BSQ"
            )
        self.levels = tuple(levels)
        self.codebook_size, self.codebook_dim = math.prod(levels), len(levels)
        if self.codebook_size >= 2**63:
            raise UserError(
                f"FSQ: levels={self.levels} make {self.codebook_size} codes; an index can hold at most 2^63"
            )

    @property
    def init_args(self) -> dict[str, Any]:
        return {"levels": list(self.levels)}

    def _quantize(self, latents: Tensor, noise: Tensor | None) -> Choice:
        levels = latents.new_tensor(self.levels).view(-1, 1, 1)
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        half_range = (levels - 1) * (1 + EPSILON) / 2
        bounded = (latents + (offset / half_range).atanh()).tanh() * half_range - offset
        half_width = levels.div(2, rounding_mode="floor")
        digits = (bounded.round() + half_width).nan_to_num().to(torch.int64)  # NaN would give an invalid index
        indices = (digits * self._basis(digits).view(-1, 1, 1)).sum(dim=1)
        # The values are looked up by index, so that they are exactly those of `codes`.
        quantized = straight_through(bounded / half_width, self._lookup(indices).movedim(-1, 1))
        return Choice(quantized, indices, {})

    def _lookup(self, indices: Tensor) -> Tensor:
        levels = indices.new_tensor(self.levels)
        half_width = levels // 2
        digits = (indices[..., None] // self._basis(indices)) % levels
        return (digits - half_width).float() / half_width

    def _basis(self, like: Tensor) -> Tensor:
        """Return the factors of the digits, (D,) int64: 1, levels[0], levels[0] * levels[1], ..."""
        return like.new_tensor([math.prod(self.levels[:i]) for i in range(self.codebook_dim)])
