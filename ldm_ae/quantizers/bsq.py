"""Binary spherical quantization: signs of latents on the unit sphere; codes are the corners of a cube inside it.

Source: Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, arXiv 2406.07548, section 3.2, and
the authors' code (bsq-vit, `quantizer/bsq.py` with `l2_norm`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ldm_ae.quantizers.lfq import LFQ


class BSQ(LFQ):
    """Latents are scaled to length 1 and channel d becomes +-1 / sqrt(D); bit d of the index is its sign. K = 2^D.

    The gradient goes straight through to the normalized latents, times 1 / sqrt(D), and from there through the
    normalization: in the authors' code the straight-through step is applied to +-1, before the scale. The term is
    `entropy`, as for `LFQ`; the distance to a code is bounded, so there is no commitment.

    Differences from the authors' code: bit 0 of an index is the first channel's, there the last one's; the groups of
    `group_bits` follow the channels, and the last may be smaller; the entropies' sum is not divided by the inverse
    temperature (1 in every published configuration), and the mean distribution is of all processes.

    Args:
        codebook_dim: Number of channels D, which is the number of bits of an index; at most 62.
        temperature: Temperature of softmax(-|u - c|^2 / temperature), the inverse of the authors' `inv_temperature`.
        diversity_weight: Weight of the mean distribution's entropy inside its term.
        group_bits: Number of bits whose joint distribution the diversity uses.
    """

    straight_through: ClassVar[bool] = False

    def __init__(
        self,
        codebook_dim: int = 18,
        *,
        temperature: float = 1.0,
        diversity_weight: float = 1.0,
        group_bits: int = 9,
    ):
        super().__init__(
            codebook_dim, temperature=temperature, diversity_weight=diversity_weight, beta=0.0, group_bits=group_bits
        )
        self.magnitude = codebook_dim**-0.5

    @property
    def init_args(self) -> dict[str, Any]:
        return {name: value for name, value in super().init_args.items() if name != "beta"}

    def features(self, latents: Tensor) -> Tensor:
        return F.normalize(latents, dim=1)
