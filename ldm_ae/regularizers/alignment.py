"""Alignment of latents with a frozen feature network (VF loss), which makes latents of many channels easier to diffuse.

Source: Yao et al., Reconstruction vs. Generation (VA-VAE), arXiv 2501.01423; published code:
github.com/hustvl/LightningDiT. With latents z_i and features f_i at the places i of one grid, and z' = W z with a
learned matrix W,

    marginal cosine similarity:  mean over i of       ReLU(1 - m1 - cos(z'_i, f_i))
    marginal distance matrix:    mean over i and j of ReLU(|cos(z_i, z_j) - cos(f_i, f_j)| - m2)

are added to one term, whose weight (0.1 in the paper) multiplies the ratio of the gradients' norms at the encoder's
last layer.

Where the published code differs from the paper, this file follows the paper: the code takes z' in both losses, the
paper takes z in the second, whose cosines then are those of the latents that a diffusion model sees. The code gives
DINOv2 images in [-1, 1]; here every feature network normalizes images as in its training. Both grids are equal in the
code, because DINOv2 sees images of 224 pixels where latents have 16x16 places; here features of another grid are
resized to the latents'.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.features import FeatureNetwork
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers._features import SeenFeatures
from ldm_ae.regularizers.interface import Regularized, Regularizer


class Alignment(Regularizer):
    """Latents whose directions and similarities are those of the last map of a feature network.

    Adds the term `alignment`, whose weight is adaptive: 0.1 in `objective.regularization_weights` is the published
    value. Latents and images are not changed. The loss compares all pairs of places: memory grows with the fourth power
    of the images' side, and is 256 KiB for each image of 16x16 latents, 4 MiB for 32x32.

    Args:
        features: The network. VA-VAE's is DINOv2 large, its last block, with images of 224 pixels for latents of 16x16.
        cosine_margin: m1: latents and features may differ in 1 - cosine by this.
        distance_margin: m2: cosines of two latents may differ by this from those of the features.
    """

    short_names = ("vf",)
    frozen = ("features",)
    adaptive_terms = frozenset({"alignment"})
    takes_target = True

    def __init__(self, *, features: FeatureNetwork, cosine_margin: float = 0.5, distance_margin: float = 0.25):
        super().__init__()
        if not (0 <= cosine_margin < 2 and 0 <= distance_margin < 2):
            raise UserError(f"Alignment: expected margins in [0, 2), got {cosine_margin} and {distance_margin}")
        self.features = features
        self.cosine_margin, self.distance_margin = cosine_margin, distance_margin
        self.projection: nn.Conv2d | None = None
        self._seen: Any = None

    @classmethod
    def example(cls) -> Alignment:
        from ldm_ae.features import DINOv2

        return cls(features=DINOv2.example())

    @property
    def identity(self) -> str:
        return f"{super().identity} with {self.features.identity}"

    def prepare(self, model: Autoencoder) -> None:
        self._seen = SeenFeatures(self.features, model.pixel_spec, self.view, "Alignment")
        self.projection = nn.Conv2d(model.latent_spec.channels, self.features.channels[-1], 1, bias=False)

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        assert self.projection is not None, "prepare comes before the first pass"
        features = self._seen(self.features, pixel_values, draws)
        with torch.no_grad():
            if features.shape[-2:] != latents.shape[-2:]:
                features = F.interpolate(features, size=latents.shape[-2:], mode="bilinear", antialias=True)
        with torch.autocast(latents.device.type, enabled=False):  # half precision has errors near the margins
            z = latents.float()
            loss = self._points(self.projection(z), features) + self._pairs(z, features)
        return Regularized(latents, pixel_values, {"alignment": loss * latents[0].numel()})

    def _points(self, projected: Tensor, features: Tensor) -> Tensor:
        """Return the marginal cosine similarity loss of each image, (B,)."""
        return F.relu(1 - self.cosine_margin - F.cosine_similarity(projected, features, dim=1)).mean(dim=(1, 2))

    def _pairs(self, latents: Tensor, features: Tensor) -> Tensor:
        """Return the marginal distance matrix loss of each image, (B,)."""
        ours, theirs = (_cosines(values) for values in (latents, features))
        return F.relu((ours - theirs).abs() - self.distance_margin).mean(dim=(1, 2))


def _cosines(values: Tensor) -> Tensor:
    """Return the cosines (B, hw, hw) of all pairs of places of (B, C, h, w)."""
    unit = F.normalize(values.flatten(2), dim=1)
    return unit.transpose(1, 2) @ unit
