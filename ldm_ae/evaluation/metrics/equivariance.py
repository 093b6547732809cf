"""Whether latents change as their image does, when it is made smaller or turned.

Source: Kouzelis et al., EQ-VAE, arXiv 2502.09509, equation 3: an equivariant encoder has E(T x) = T E(x) for a
transformation T of images and the same T of latents. The paper measures the images that D(T E(x)) gives; the error of
latents needs no decoder and no other metric, the PSNR of the images does not depend on what latents are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics._of_model import ModelMetric
from ldm_ae.evaluation.metrics.interface import CannotScoreError, ScoreInfo, Scores
from ldm_ae.evaluation.metrics.psnr import psnr
from ldm_ae.images.missing import keep_missing
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models import Autoencoder


def halve(images: Tensor) -> Tensor:
    """Return images or latents (B, C, H, W) at half the size: bilinear, with a filter against aliasing."""
    return F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)


def turn(images: Tensor) -> Tensor:
    """Return images or latents (B, C, H, W) turned by 90 degrees, (B, C, W, H)."""
    return images.rot90(1, dims=(2, 3))


def change(images: Tensor, transform: Callable[[Tensor], Tensor], pixels: PixelSpec) -> Tensor:
    """Return transformed images, of which missing elements do not become part of others."""
    return transform(images) if pixels.missing is None else keep_missing(transform, images)


TRANSFORMS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "scale": ("half the size", halve),
    "rotation": ("a turn by 90 degrees", turn),
}


def _explained(words: str) -> tuple[str, str]:
    error = f"Squared distance of the latents of images at {words} to the latents, transformed alike; 1: unrelated."
    return error, f"PSNR of images at {words} against the decoded latents that were transformed alike."


class Equivariance(ModelMetric):
    """Error of E(T x) against T E(x), relative to the variance of E(T x), and PSNR of D(T E(x)) against T x.

    E is the posterior's mode. Each transformation costs another encoding and decoding.
    """

    name = "equivariance"
    group = "latents"
    label = "Equivariance"
    explanation = "Whether latents change as their image does, when it is made smaller or turned."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        key: info
        for name, (words, _) in TRANSFORMS.items()
        for key, info in (
            (f"equivariance_error_{name}", ScoreInfo(
                label=f"Equivariance error, {name}", direction="lower", explanation=_explained(words)[0],
            )),
            (f"equivariance_psnr_{name}", ScoreInfo(
                label=f"Equivariance, {name}", direction="higher", unit="dB", explanation=_explained(words)[1],
                decimals=2,
            )),
        )
    }  # fmt: skip

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._errors = dict.fromkeys(TRANSFORMS, 0.0)
        self._variances = dict.fromkeys(TRANSFORMS, 0.0)

    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return (B,) PSNR, and add to the errors; CannotScoreError if the model cannot take the transformed images."""
        latents, found = latents.float(), {}
        for name, (words, transform) in TRANSFORMS.items():
            images, expected = change(pixel_values, transform, model.pixel_spec), transform(latents)
            try:
                encoded = model.encode(images).mode().float()
                decoded = model.decode(expected)
            except UserError as error:
                raise CannotScoreError(f"{self.label} encodes images at {words}: {error}") from None
            if encoded.shape != expected.shape:
                sizes = f"{tuple(encoded.shape[2:])} and {tuple(expected.shape[2:])}"
                raise CannotScoreError(f"{self.label} compares latents at {words}, whose sizes differ: {sizes}")
            self._errors[name] += float((encoded - expected).double().square().sum())
            variance = (encoded - encoded.mean(dim=(2, 3), keepdim=True)).double().square().sum()
            self._variances[name] += float(variance)
            found[f"equivariance_psnr_{name}"] = psnr(decoded, images, model.pixel_spec)
        return found

    def compute(self) -> Scores:
        """Return errors over all images, and means of the images' PSNR."""
        tiny = torch.finfo(torch.float64).tiny
        ratios = {
            f"equivariance_error_{name}": self._errors[name] / max(self._variances[name], tiny) for name in TRANSFORMS
        }
        return {**super().compute(), **ratios}
