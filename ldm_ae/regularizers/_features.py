"""The features of a regularizer's frozen network, which takes RGB images, of any images."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.features import FeatureNetwork
from ldm_ae.images.missing import without_missing
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views import View, view_for


class SeenFeatures:
    """The last map of a feature network of a model's images, without a graph.

    Args:
        features: The network.
        pixels: The model's images.
        view: `objective.view`; None for the default of these images.
        user: Name of the regularizer.

    Raises:
        UserError: There is no view of these images.
    """

    def __init__(self, features: FeatureNetwork, pixels: PixelSpec, view: View | None, user: str):
        self._view = view_for(RGB, pixels, view, f"{user} with {type(features).__name__}")
        self._missing = pixels.missing is not None

    @torch.no_grad()
    def __call__(self, features: FeatureNetwork, pixel_values: Tensor, draws: Draws) -> Tensor:
        """Return (B, D, h, w) float32 of images (B, C, H, W); a view that draws takes numbers from `draws`."""
        images = without_missing(pixel_values) if self._missing else pixel_values
        if self._view is not None:
            images = self._view.single(images, draws)
        return features(images)[-1].float()
