"""A weighted sum of perceptual losses.

ViTok-v2 (arXiv 2605.05331), for example, adds 0.1 (1 - SSIM) and 500 times a distance of DINO features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import RGB
from ldm_ae.losses.perceptual.interface import PerceptualLoss


class WeightedSum(PerceptualLoss):
    """A sum of perceptual losses, each logged under its own name.

    Args:
        losses: The losses.
        weights: The weight of each; null gives each the weight 1.
    """

    short_names = ("sum",)

    def __init__(self, *, losses: list[PerceptualLoss], weights: list[float] | None = None):
        weights = [1.0] * len(losses) if weights is None else weights
        if not losses or len(losses) != len(weights):
            raise UserError(
                f"WeightedSum: expected one weight for each loss, got {len(losses)} losses and {len(weights)} weights"
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise UserError(f"WeightedSum: expected weights of at least 0, got {weights}")
        names = [loss.name for loss in losses]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"WeightedSum: two losses are named {doubled[0]}; remove one, or choose another network")
        super().__init__("+".join(f"{weight:g}x{name}" for weight, name in zip(weights, names, strict=True)))
        self.losses, self.weights = nn.ModuleList(losses), weights
        # A sum accepts what each of its losses accepts; the strictest of them is stated.
        stated = [loss.pixels for loss in losses if loss.pixels is not None]
        self.pixels = next((pixels for pixels in stated if pixels != RGB), RGB) if stated else None

    @classmethod
    def example(cls) -> WeightedSum:
        from ldm_ae.losses.perceptual.logits import LogitDistance
        from ldm_ae.losses.perceptual.ssim import SSIMDistance

        return cls(losses=[SSIMDistance(), LogitDistance.example()], weights=[0.1, 2.0])

    @property
    def identity(self) -> str:
        return ", ".join(f"{weight:g} x {loss.identity}" for weight, loss in self._terms())

    def measure(self, reconstructions: Tensor, pixel_values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        distances = {loss.name: loss(reconstructions, pixel_values) for _, loss in self._terms()}
        weighted = [weight * distance for weight, distance in zip(self.weights, distances.values(), strict=True)]
        return torch.stack(weighted).sum(dim=0), distances

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return self.measure(reconstructions, pixel_values)[0]

    def _terms(self) -> Sequence[tuple[float, PerceptualLoss]]:
        return list(zip(self.weights, self.losses, strict=True))  # type: ignore[arg-type]
