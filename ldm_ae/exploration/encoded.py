"""The images of an exploration: encoded once, with thumbnails of all and the pixels of a few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.data import Batch
from ldm_ae.exploration.decoding import shown_levels
from ldm_ae.exploration.settings import Settings, spread
from ldm_ae.models import Autoencoder, require_finite

KEPT_BYTES, MOST_KEPT = 2**26, 256
"""Bytes and number of the images whose pixels are kept."""
MANY = 1000
"""Number of images above which thumbnails are small."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Images and their latents, on the CPU. N images have latents, K of them pixels."""

    keys: list[str]
    """Names of the N images."""
    latents: Tensor
    """The posteriors' modes, unscaled, (N, C, h, w) float32."""
    log_variances: Tensor | None
    """Logarithms of the posteriors' variances, (N, C, h, w) float32; None unless posteriors are Gaussian."""
    indices: Tensor | None
    """Codes (N, h, w), or (N, Q, h, w) of residual quantization; None for a continuous model."""
    labels: Tensor
    """Class numbers, (N,) int64, -1 where an image has none."""
    classes: Sequence[str]
    """Names of the classes 0, 1, ...; may be empty."""
    thumbnails: Tensor
    """(N, 3, s, s) uint8."""
    rows: list[int]
    """Numbers of the K images among the N."""
    levels: Tensor
    """The K images as people see them, (K, 3, H, W) uint8."""

    @property
    def is_vector(self) -> bool:
        """Whether an image's latents are one vector, (C, 1, 1)."""
        return self.latents.shape[-2:] == (1, 1)

    @property
    def is_labelled(self) -> bool:
        """Whether images of two classes or more have labels."""
        return len(self.labels[self.labels >= 0].unique()) > 1

    def class_name(self, label: int) -> str:
        """Return the name of a class."""
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"

    def shown(self, count: int) -> list[int]:
        """Return the places among the K images of `count` images to show, evenly spread."""
        return spread(len(self.rows), count)


def encode_images(
    model: Autoencoder, loader: Iterable[Batch], settings: Settings, *, count: int, classes: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Encoded:  # fmt: skip
    """Encode every image.

    Args:
        model: A model that `for_inference` prepared.
        loader: Batches of images of one size.
        settings: The settings of the page.
        count: Number of images that the loader visits.
        classes: Names of the labels.
        progress: Called after every batch with the number of images done.

    Raises:
        UserError: There are no images, or latents are not finite.
    """
    keys: list[str] = []
    parts: dict[str, list[Tensor]] = {}
    rows: list[int] = []
    wanted: set[int] | None = None
    for batch in loader:
        if wanted is None:
            size = batch.pixel_values[0].numel()
            wanted = set(spread(count, max(min(KEPT_BYTES // size, MOST_KEPT), settings.pictures)))
        posterior = model.encode(batch.pixel_values.to(model.device))
        latents = posterior.mode().float().cpu()
        require_finite(latents, batch.keys, settings.precision, what="the latents")
        levels = shown_levels(batch.pixel_values, settings)
        kept = [i for i in range(len(batch)) if len(keys) + i in wanted]
        rows += [len(keys) + i for i in kept]
        found = {"latents": latents, "labels": batch.labels, "levels": levels[kept],
                 "thumbnails": _thumbnails(levels, _side(count, levels.shape[-1]))}  # fmt: skip
        if posterior.moments is not None:
            found["log_variances"] = posterior.moments.chunk(2, dim=1)[1].cpu()
        if posterior.indices is not None:
            found["indices"] = posterior.indices.cpu()
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
        keys += batch.keys
        if progress is not None:
            progress(len(keys))
    if not keys:
        raise UserError("there are no images to explore the model on; give other IMAGES")
    joined = {name: torch.cat(values) for name, values in parts.items()}
    if not rows:  # unreadable images moved all others to other places
        raise UserError("none of the images that the page shows can be read; give other IMAGES")
    return Encoded(
        keys=keys, latents=joined["latents"], log_variances=joined.get("log_variances"), indices=joined.get("indices"),
        labels=joined["labels"], classes=classes, thumbnails=joined["thumbnails"], rows=rows, levels=joined["levels"],
    )  # fmt: skip


def _side(count: int, width: int) -> int:
    """Return the side of thumbnails: a multiple of JPEG's blocks of 16 pixels, so that none blurs into another."""
    return 32 if count > MANY or width <= 32 else 48


def _thumbnails(levels: Tensor, side: int) -> Tensor:
    small = F.interpolate(levels.float(), size=(side, side), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)
