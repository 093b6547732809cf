"""Residual quantization: each level codes the remainder of the levels before it.

Source: Zeghidour et al., SoundStream, arXiv 2107.03312, section III.C; Lee et al., Autoregressive Image Generation
using Residual Quantization, arXiv 2203.01941, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.quantizers.interface import Choice, Quantized, Quantizer, straight_through


class ResidualVQ(Quantizer):
    """A sequence of Q quantizers of one kind; the quantized latents are the sum of their codes.

    Indices are (B, Q, h, w) and `codebook_size` is that of one level. Terms are sums over the levels. If the levels
    pass the gradient straight through, so does their sum; else each level's gradient is chained through the residuals.

    Args:
        quantizer: Quantizer of the first level; the others have the same arguments and another initialization.
        levels: Number of levels Q.
    """

    short_names = ("residual", "rvq")

    def __init__(self, quantizer: Quantizer, levels: int = 4):
        super().__init__()
        if levels < 1:
            raise UserError(f"ResidualVQ: expected at least 1 level, got {levels}")
        if isinstance(quantizer, ResidualVQ):
            raise UserError("ResidualVQ: quantizer is itself a ResidualVQ; raise the levels of that one instead")
        others = [type(quantizer)(**quantizer.init_args) for _ in range(levels - 1)]
        self.levels = nn.ModuleList([quantizer, *others])
        self.codebook_size, self.codebook_dim = quantizer.codebook_size, quantizer.codebook_dim
        self.codebook_levels = levels
        self.needed_terms = quantizer.needed_terms
        self.straight_through = quantizer.straight_through  # type: ignore[misc]

    @property
    def init_args(self) -> dict[str, Any]:
        return {"quantizer": self.levels[0], "levels": len(self.levels)}

    def _quantize(self, latents: Tensor, noise: Tensor | None) -> Choice:
        residual, total = latents, torch.zeros_like(latents)
        indices, losses = [], dict[str, Tensor]()
        for depth, level in enumerate(self._levels()):
            # Levels that draw must not all draw the same noise.
            choice = level._quantize(residual, None if noise is None else noise + depth)
            total = total + choice.quantized
            indices.append(choice.indices)
            for name, term in choice.losses.items():
                losses[name] = losses[name] + term if name in losses else term
            residual = residual - (choice.quantized.detach() if self.straight_through else choice.quantized)
        if self.straight_through:
            total = straight_through(latents, total)
        return Choice(total, torch.stack(indices, dim=1), losses)

    def _lookup(self, indices: Tensor) -> Tensor:
        total = indices.new_zeros((), dtype=torch.float32)
        for level, chosen in zip(self._levels(), indices.unbind(dim=1), strict=True):
            total = total + level._lookup(chosen)
        return total

    def _learn(self, batches: Sequence[Quantized], counts: Tensor) -> None:
        # All residuals are computed before any update, which changes the codes.
        inputs: list[list[Quantized]] = [[] for _ in self.levels]
        for batch in batches:
            residual = batch.latents
            for depth, level in enumerate(self._levels()):
                codes = level.codes(batch.indices[:, depth])
                inputs[depth].append(Quantized(codes, batch.indices[:, depth], {}, {}, residual))
                residual = residual - codes
        for depth, level in enumerate(self._levels()):
            level._learn(inputs[depth], counts[depth])

    def _histogram(self, indices: Tensor) -> Tensor:
        """Return the counts of all levels, (Q, K)."""
        return torch.stack([super(ResidualVQ, self)._histogram(chosen) for chosen in indices.unbind(dim=1)])

    def _levels(self) -> list[Quantizer]:
        return [level for level in self.levels if isinstance(level, Quantizer)]
