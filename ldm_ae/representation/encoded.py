"""Images of a source in one tensor, and the posteriors of a model over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, ImageTransform, Source
from ldm_ae.models import Autoencoder

BATCH = 256
"""Most images in a batch."""
BATCH_PIXELS = 2**20
"""Most pixels in a batch of images in memory: 256 images of 64x64."""


class Images(NamedTuple):
    """Images in memory."""

    pixel_values: Tensor
    """(N, C, H, W) in [-1, 1], on the model's device."""
    labels: Tensor
    """(N,) int64 on the CPU, -1 where an image has no label."""
    indices: Tensor
    """(N,) int64 on the CPU, indices into the source."""


def read_images(model: Autoencoder, source: Source, *, limit: int | None = None, size: int | None = None) -> Images:
    """Return the first images of a source, resized and cropped to a square.

    Args:
        model: The model, which gives meaning and device of the images.
        source: The images.
        limit: Number of images; None for all.
        size: Side of the square in pixels; None for the model's sample size.

    Raises:
        UserError: An image cannot be read, or `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the number of images is {limit}; it must be at least 1")
    transform = ImageTransform(size=model.sample_size if size is None else size, pixels=model.pixel_spec)
    chosen = range(min(limit or len(source), len(source)))
    batches = list(EvaluationLoader(source, transform, batch_size=BATCH, indices=chosen, max_bad_fraction=0.0))
    return Images(
        torch.cat([batch.pixel_values for batch in batches]).to(model.device),
        torch.cat([batch.labels for batch in batches]), torch.cat([batch.indices for batch in batches]),
    )  # fmt: skip


def batch_size(images: Tensor) -> int:
    """Return the number of images as large as these, (N, C, H, W), that go through a model at once."""
    return max(1, min(BATCH, BATCH_PIXELS // (images.shape[-2] * images.shape[-1])))


def in_batches(images: Tensor) -> tuple[Tensor, ...]:
    """Return the parts (n, C, H, W) of images (N, C, H, W), each with at most `BATCH` images and `BATCH_PIXELS`."""
    return images.split(batch_size(images))


class Encoded(NamedTuple):
    """Posteriors of images, flattened, on the CPU."""

    means: Tensor
    """(N, D) float32, the posteriors' modes."""
    log_variances: Tensor | None
    """(N, D) float32; None where the posteriors are not Gaussian."""


def encode(model: Autoencoder, pixel_values: Tensor) -> Encoded:
    """Return the posteriors of images (N, C, H, W) on the model's device, which is in eval mode."""
    means, log_variances = [], []
    with torch.no_grad():
        for part in in_batches(pixel_values):
            posterior = model.encode(part)
            means.append(posterior.mode().flatten(1).float().cpu())
            if posterior.moments is not None:
                log_variances.append(posterior.moments.chunk(2, dim=1)[1].flatten(1).cpu())
    return Encoded(torch.cat(means), torch.cat(log_variances) if log_variances else None)
