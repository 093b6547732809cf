"""Sets of images, how they are loaded, and their encoding for all scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, ImageTransform, Source, open_source
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.models import require_finite
from ldm_ae.outliers.encoded import Encoded
from ldm_ae.outliers.scores import OutlierScore


@dataclass(frozen=True)
class ImageSet:
    """Images of a source."""

    name: str
    """Origin, in words."""
    source: Source
    count: int
    """Number of images: the first ones of the source."""


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The images of a search."""

    images: ImageSet
    """The images that are ranked."""
    reference: ImageSet | None = None
    """Normal images for scores that compare with a data set. By default they are `images`; with `against`, every
    second one of them, because an image that is its own reference looks more normal than a new one."""
    against: ImageSet | None = None
    """Strange images. Then `images` count as normal, without those that are the reference."""


def open_sets(
    images: str | Path, reference: str | Path | None = None, against: str | Path | None = None, *,
    limit: int | None = None, source: Source | None = None,
) -> Sets:  # fmt: skip
    """Open the sources of a search.

    Args:
        images: The images that are ranked: any source of the commands.
        reference: Normal images; None for `images`.
        against: Strange images; None for none.
        limit: Number of images of each set; None for all.
        source: The source of `images`, if it is open.

    Raises:
        UserError: A source does not exist.
    """

    def image_set(place: str | Path, source: Source) -> ImageSet:
        return ImageSet(str(place), source, min(limit or len(source), len(source)))

    def opened(place: str | Path | None) -> ImageSet | None:
        return None if place is None else image_set(place, open_source(str(place)))

    ranked = image_set(images, source or open_source(str(images)))
    return Sets(images=ranked, reference=opened(reference), against=opened(against))


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How all sets are loaded."""

    transform: ImageTransform
    batch_size: int = 8
    workers: int = 0
    max_bad_fraction: float = 0.01

    def loader(self, images: ImageSet, indices: Sequence[int] | None = None) -> EvaluationLoader:
        """Return the batches of a set, or of some of its images by their numbers in the source."""
        return EvaluationLoader(
            images.source, self.transform, batch_size=self.batch_size, workers=self.workers,
            max_bad_fraction=self.max_bad_fraction, indices=range(images.count) if indices is None else indices,
        )  # fmt: skip


class Measured(NamedTuple):
    """Measurements of the images of a set."""

    keys: list[str]
    """Names of the N images that can be read."""
    indices: list[int]
    """Their numbers in the source."""
    rejected: dict[str, str]
    """Reasons why others cannot, by key."""
    measurements: dict[str, Tensor]
    """Measurements (N,) or (N, D) by the names of the scores."""


def encode(setting: Setting, pixel_values: Tensor, indices: Tensor, keys: list[str], precision: str) -> Encoded:
    """Encode and decode a batch.

    Raises:
        UserError: A reconstruction is not finite.
    """
    assert setting.model is not None
    images = pixel_values.to(setting.device)
    posterior = setting.model.encode(images)
    decoded = setting.model.decode(posterior.mode())
    require_finite(decoded, keys, precision)
    return Encoded(setting, images, indices, posterior, decoded.clamp(*setting.pixels.range))


def measure(
    setting: Setting, images: ImageSet, loading: Loading, scores: dict[str, OutlierScore], skipped: dict[str, str],
    *, precision: str, progress: Callable[[int], None],
) -> Measured:  # fmt: skip
    """Measure every image of a set.

    A score that cannot be computed moves from `scores` to `skipped`, which has reasons by name.

    Raises:
        UserError: There are no images, or too many cannot be read.
    """
    loader = loading.loader(images)
    keys: list[str] = []
    indices: list[int] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in scores}
    for batch in loader:
        encoded = encode(setting, batch.pixel_values, batch.indices, batch.keys, precision)
        for name, score in list(scores.items()):
            try:
                parts[name].append(score.measure(encoded))
            except CannotScoreError as error:
                skipped[name] = str(error)
                del scores[name]
        keys += batch.keys
        indices += batch.indices.tolist()
        progress(len(keys))
    if not keys:
        raise UserError(f"there are no images in {images.name}; give others")
    found = {name: torch.cat(parts[name]) for name in scores}
    return Measured(keys, indices, dict(loader.rejected), found)
