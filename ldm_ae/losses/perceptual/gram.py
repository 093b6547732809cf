"""The distance of Gram matrices: whether textures agree, wherever they are.

Source: Gatys et al., A Neural Algorithm of Artistic Style, arXiv 1508.06576; in the normalization of Johnson et al.,
Perceptual Losses for Real-Time Style Transfer and Super-Resolution, arXiv 1603.08155, section 3.2: G = F F^T / (CHW)
for the map F (C, HW), and the squared Frobenius norm of the difference, summed over the maps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.features import FeatureNetwork
from ldm_ae.losses.perceptual._of_features import FeatureLoss


class GramDistance(FeatureLoss):
    """Squared distance of Gram matrices, summed over the maps, in float32.

    Args:
        features: The network, and the maps that are compared. That of the papers: `VGG16` with `layers: [0, 1, 2, 3]`.
    """

    short_names = ("gram",)
    kind = "gram"

    def __init__(self, *, features: FeatureNetwork):
        super().__init__(features)

    def compared(self, pixel_values: Tensor) -> list[Tensor]:
        return [_gram(features) for features in self.features(pixel_values)]

    def distance(self, found: list[Tensor], real: list[Tensor]) -> Tensor:
        return torch.stack([(f - r).square().sum(dim=(1, 2)) for f, r in zip(found, real, strict=True)]).sum(dim=0)


def _gram(features: Tensor) -> Tensor:
    """Return the Gram matrices (B, C, C) float32 of a map (B, C, h, w)."""
    rows = features.float().flatten(2)
    return rows @ rows.transpose(1, 2) / rows[0].numel()
