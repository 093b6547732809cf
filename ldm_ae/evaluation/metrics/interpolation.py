"""The quality of images between images, which predicts that of a diffusion model's samples.

Source: Xu et al., Making Reconstruction FID Predictive of Diffusion Generation FID, arXiv 2603.05630, section 3, and
its code (github.com/tongdaxu/Making-rFID-Predictive-of-Diffusion-gFID, evalvae.py): the latents of each image are
interpolated with those of a near neighbour, halfway and spherically; iFID is the Fréchet distance of the decoded images
to the originals. The code looks for neighbours by cosine similarity among the images of ImageNet's training set and
draws one of the ten nearest; here the neighbour is the nearest of the other images that are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics._of_model import ModelMetric
from ldm_ae.evaluation.metrics.features import FeatureNetwork
from ldm_ae.evaluation.metrics.frechet import RELIABLE_IMAGES, FeatureStatistics, Frechet, frechet_distance
from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, Needs, Scores, Setting
from ldm_ae.images.missing import without_missing
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.stored import as_stored
from ldm_ae.images.views import View, view_for
from ldm_ae.models import Autoencoder

IMAGES = 2048
"""Number of images whose latents are kept: the first ones. Their neighbours are among them."""
_BLOCK = 256
"""Rows and columns of the matrix of similarities that are computed at a time."""


class Interpolation(ModelMetric):
    """Fréchet distance between the originals and decoded interpolations of the latents of nearest neighbours.

    The score is `ifid` over FID's network, `interpolation_frechet_NAME` over every other. The latents of the first
    `IMAGES` images are kept, scaled, in float16. Each image costs another decoding, after the last batch.

    Args:
        features: Feature network; None takes that of `Frechet`.
        originals: A metric of the same evaluation over the same network, whose statistics of the originals are used;
            None gathers them here.
    """

    name = "interpolation"
    group = "latents"
    direction = "lower"
    needs = Needs(images=2)
    reliable_images = RELIABLE_IMAGES

    def __init__(self, features: FeatureNetwork | None = None, *, originals: Frechet | None = None):
        self._frechet = Frechet(features) if originals is None else originals
        self.originals_of = originals
        """The metric whose statistics of the originals are used."""
        network = self._frechet.name.removeprefix("frechet_")
        self.name = "ifid" if network == "rfid" else f"interpolation_{self._frechet.name}"
        self.label = "iFID" if network == "rfid" else f"Interpolation, Fréchet distance, {network}"
        self.explanation = "Fréchet distance between originals and decoded midpoints of neighbouring latents."
        self._pixels: PixelSpec = RGB
        self._view: View | None = None
        super().__init__()

    def require(self, shape: tuple[int, ...]) -> None:
        """Run the network on this shape."""
        self._frechet.require(shape)

    def prepare(self, setting: Setting) -> None:
        """Keep the model, and move the network to the device; CannotScoreError without a view of the images."""
        super().prepare(setting)
        self._pixels = setting.pixels
        try:
            self._view = view_for(RGB, setting.pixels, setting.view, self.label, setting="--view")
        except UserError as error:
            raise CannotScoreError(str(error)) from None
        self._frechet.prepare(setting)

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._originals = FeatureStatistics(self._frechet.features.dim)
        self._latents: dict[tuple[int, ...], list[Tensor]] = {}  # scaled, by shape
        self._kept = 0
        self._batch = 1
        self._like = torch.empty(0)
        self._similarities: list[float] = []

    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Add a batch; single images have no value.

        Raises:
            CannotScoreError: The scaled latents exceed the range of float16.
        """
        if self.originals_of is None:
            self._originals.update(self._frechet.features(self._seen(pixel_values)))
        scaled = model.scale(latents)[: IMAGES - self._kept].to("cpu", torch.float16)
        if not scaled.isfinite().all():
            raise CannotScoreError(f"{self.label} needs scaled latents within float16's range of ±65,504")
        if len(scaled):
            self._latents.setdefault(tuple(scaled.shape[1:]), []).extend(scaled)
        self._kept += len(scaled)
        self._batch, self._like = max(self._batch, len(latents)), latents[:0]
        return {}

    def _seen(self, images: Tensor) -> Tensor:
        """Return the RGB images that the network sees."""
        if self._view is None:
            return images
        return self._view(images if self._pixels.missing is None else without_missing(images))[0]

    def compute(self) -> Scores:
        """Decode the interpolations, and return their distance, at least 0, by the score's name.

        Raises:
            CannotScoreError: There are fewer than 2 images, or fewer than 2 that have another of their size.
        """
        assert self._model is not None
        self._similarities = []
        interpolations = FeatureStatistics(self._frechet.features.dim)
        with torch.no_grad():
            for scaled in self._midpoints():
                latents = self._model.unscale(scaled.to(self._like.device)).to(self._like)
                decoded = as_stored(self._model.decode(latents), self._pixels)
                interpolations.update(self._frechet.features(self._seen(decoded)))
        originals = self._originals if self.originals_of is None else self.originals_of.originals
        return {self.name: frechet_distance(originals, interpolations)}

    def _midpoints(self) -> Iterator[Tensor]:
        """Yield batches of scaled latents halfway between those of an image and of its nearest neighbour."""
        for kept in self._latents.values():
            latents = torch.stack(kept)
            if len(latents) < 2:
                continue
            neighbours, similarities = nearest_neighbours(latents.flatten(1))
            self._similarities += similarities.tolist()
            for rows in torch.arange(len(latents)).split(self._batch):
                yield halfway(latents[rows].float(), latents[neighbours[rows]].float())

    def details(self) -> Mapping[str, JSON]:
        """Return the number of interpolations, and the mean cosine similarity of latents to their neighbour's."""
        found = self._similarities
        return {"interpolations": len(found), "cosine_similarity": sum(found) / len(found)}

    def protocol(self) -> dict[str, object]:
        """Return how neighbours were found and interpolated, and the network."""
        features = self._frechet.features
        return {
            "interpolation": {
                "neighbours": f"largest cosine similarity of scaled latents, of the first {IMAGES} images of one size",
                "interpolation": "spherical, halfway",
                "network": features.name,
                "preprocessing": features.preprocessing,
            }
        }


def nearest_neighbours(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row (N,) int64 of the other vector with the largest cosine similarity, and that similarity (N,).

    Args:
        vectors: (N, D) of any floating-point type, N at least 2; computed in float32.
    """
    rows, best = [], []
    for start in range(0, len(vectors), _BLOCK):
        block = F.normalize(vectors[start : start + _BLOCK].float(), dim=1)
        similarities = torch.cat([block @ F.normalize(other.float(), dim=1).T for other in vectors.split(_BLOCK)], 1)
        own = torch.arange(len(block))
        similarities[own, start + own] = -torch.inf
        values, indices = similarities.max(dim=1)
        rows.append(indices)
        best.append(values)
    return torch.cat(rows), torch.cat(best)


def halfway(a: Tensor, b: Tensor) -> Tensor:
    """Return the spherical interpolation (Shoemake, Animating Rotation with Quaternion Curves, 1985) halfway between
    each two of (B, ...): sin(θ/2) / sin θ (a + b) for the angle θ between them, and their mean where it is 0 or π."""
    x, y = a.flatten(1).double(), b.flatten(1).double()
    cosine = (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(dim=1).clamp(-1.0, 1.0)
    # sin(θ/2) / sin θ = 1 / (2 cos(θ/2)) = 1 / √(2 + 2 cos θ)
    weights = torch.where(cosine > -1.0 + 1e-9, (2.0 + 2.0 * cosine).rsqrt(), 0.5)
    return ((x + y) * weights[:, None]).to(a.dtype).view_as(a)
