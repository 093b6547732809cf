"""Lookup-free quantization: every channel is replaced by its sign, and the signs form the index.

Source: Yu et al., Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (MAGVIT-v2), arXiv 2310.05737,
section 3.1. Channels are independent, so H(p(c|z)) is exactly a sum over bits; the entropy of the mean distribution is
taken over groups of bits, as in Zhao et al. (BSQ), arXiv 2406.07548, section 3.3, and is MAGVIT-v2's own for one group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers.interface import Choice, Quantizer, squared_error, straight_through
from ldm_ae.quantizers.regularizers import diversity


class LFQ(Quantizer):
    """Channel d becomes -1 or 1; bit d of the index is its sign. K = 2^D.

    The order of the bits is specific to this project: bit 0 is the first channel's. In public code of this method
    (Open-MAGVIT2, vector-quantize-pytorch) the first channel is the highest bit; its indices are ours bit-reversed.

    With p(c|z) = softmax over all codes of -|z - c|^2 / temperature, the terms are, summed over an image's positions,
    `entropy` H(p) - diversity_weight H(mean p) in nats, the mean being over the batch of all processes, and
    `commitment` beta |z - sg(c)|^2. A published weight of the entropy counts positions; under `mean` reduction, which
    divides by D h w, it becomes D times as large.

    Args:
        codebook_dim: Number of channels D, which is the number of bits of an index; at most 62.
        temperature: Temperature of p. 0.01 is an inverse temperature of 100.
        diversity_weight: Weight of the mean distribution's entropy inside its term.
        beta: Weight of the commitment inside its term; 0 removes the term.
        group_bits: Number of bits whose joint distribution the diversity uses; each position needs memory for
            2^group_bits numbers.
    """

    def __init__(
        self,
        codebook_dim: int = 10,
        *,
        temperature: float = 0.01,
        diversity_weight: float = 1.0,
        beta: float = 0.25,
        group_bits: int = 8,
    ):
        super().__init__()
        if not 1 <= codebook_dim <= 62:
            raise UserError(f"{type(self).__name__}: codebook_dim={codebook_dim} must be from 1 to 62 bits")
        if temperature <= 0 or group_bits < 1:
            raise UserError(
                f"{type(self).__name__}: temperature={temperature} must be above 0 and group_bits={group_bits} at "
                "least 1"
            )
        self.codebook_size, self.codebook_dim = 2**codebook_dim, codebook_dim
        self.temperature, self.diversity_weight, self.beta = temperature, diversity_weight, beta
        self.group_bits = group_bits
        self.magnitude = 1.0

    @property
    def init_args(self) -> dict[str, Any]:
        return {
            "codebook_dim": self.codebook_dim, "temperature": self.temperature,
            "diversity_weight": self.diversity_weight, "beta": self.beta, "group_bits": self.group_bits,
        }  # fmt: skip

    def features(self, latents: Tensor) -> Tensor:
        """Return the features of latents (B, D, h, w) that are compared and coded: the latents themselves."""
        return latents

    def _quantize(self, latents: Tensor, noise: Tensor | None) -> Choice:
        features = self.features(latents)
        bits = features.detach() > 0
        indices = (bits * self._powers(bits).view(-1, 1, 1)).sum(dim=1)
        codes = self._lookup(indices).movedim(-1, 1)
        losses = {"entropy": self._entropy(features)}
        if self.beta:
            losses["commitment"] = self.beta * squared_error(features, codes, len(latents))
        return Choice(straight_through(self.magnitude * features, codes), indices, losses)

    def _lookup(self, indices: Tensor) -> Tensor:
        bits = indices[..., None].bitwise_and(self._powers(indices)) > 0
        return torch.where(bits, self.magnitude, -self.magnitude)

    def _powers(self, like: Tensor) -> Tensor:
        return torch.tensor([1 << i for i in range(self.codebook_dim)], device=like.device)

    def _entropy(self, features: Tensor) -> Tensor:
        """Return the entropy term, (B,) in nats."""
        # -|z - c|^2 of the two values of one bit differ by 4 z |c|.
        logits = 4.0 * self.magnitude / self.temperature * rearrange(features, "b d h w -> b (h w) d")
        size = logits.abs()
        uncertainty = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(dim=-1)
        rows = rearrange(torch.sigmoid(logits), "b p d -> (b p) d")
        spread = torch.stack([
            diversity(_joint(group).mean(dim=0), training=self.training) for group in rows.split(self.group_bits, dim=1)
        ]).sum()  # fmt: skip
        return (uncertainty - self.diversity_weight * spread).sum(dim=1)


def _joint(probabilities: Tensor) -> Tensor:
    """Joint distribution of independent bits with probabilities (N, g) of a one: (N, 2^g)."""
    joint = torch.ones_like(probabilities[:, :1])
    for p in probabilities.split(1, dim=1):
        joint = torch.cat([joint * (1.0 - p), joint * p], dim=1)
    return joint
