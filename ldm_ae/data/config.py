"""The data of a run: its images, their transform, and the held-out images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

from ldm_ae.core.errors import UserError
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.data.buckets import Buckets
from ldm_ae.data.holdout import split_holdout
from ldm_ae.data.loader import EvaluationLoader, TrainingLoader
from ldm_ae.data.sources import Source, open_source
from ldm_ae.images.buckets import BucketTransform, Size, parse_size, sizes_of_area
from ldm_ae.images.decoding import MAX_PIXELS, ColourProfiles
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.transforms import ImageTransform

_log = logging.getLogger("ldm_ae")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images for training and for validation."""

    train: str
    """IMAGES: a folder, WebDataset tars, Parquet, a `datasets` source (hf:NAME or a folder of it), photos:train,
    digits:train or sprites:N."""
    validation: str | None = None
    """IMAGES for validation; None holds out some of the training images instead."""
    validation_images: int = 64
    """Maximum number of validation images; 0 disables validation."""
    resolution: int = 256
    """Side of the square crops in pixels; with `sizes` or `area`, of the validation crops alone."""
    sizes: list[str] | str | None = None
    """Several sizes of training crops instead of `resolution`, HxW in pixels, such as [256x256, 192x320, 320x192]; each
    image is resized and cropped to the size with the nearest aspect ratio. All images of a step have one size."""
    area: str | None = None
    """Like `sizes`, with all sizes of about this area, HxW in pixels."""
    multiple: int | None = None
    """With `area`: divisor of every side; None is 64."""
    max_ratio: float | None = None
    """With `area`: maximum ratio of the longer to the shorter side; None is 4."""
    resize: int | Literal["none"] | None = None
    """Shorter side after resizing, before the crop; None resizes it to the resolution, none does not resize."""
    crop: Literal["random", "center", "adm"] = "random"
    """Position of training crops; validation crops are central. `adm` resizes both as ADM does, with box halving."""
    flip: bool = True
    """Mirror half of the training crops, chosen at random."""
    colour_profiles: ColourProfiles = "convert"
    """Convert colours to sRGB by each image's colour profile, or ignore profiles."""
    max_pixels: int = MAX_PIXELS
    """Maximum number of pixels of an image; larger images are skipped."""
    workers: int = 2
    """Maximum number of processes that decode images, for each training process; at most one per CPU core starts."""
    cache_megabytes: int = 0
    """Memory in MB for decoded images, in each worker, for data sets that fit."""
    max_bad_fraction: float = 0.01
    """Maximum fraction of unusable images; above it the run stops with an error."""

    def __post_init__(self) -> None:
        if self.resolution < 1 or self.workers < 0 or self.validation_images < 0:
            raise UserError("data: resolution must be at least 1, workers and validation_images at least 0")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction is {self.max_bad_fraction}; it must be in [0, 1]")
        if self.area is None and (self.multiple is not None or self.max_ratio is not None):
            raise UserError("data.multiple and data.max_ratio have no effect without data.area; remove them, or set it")
        if given := [name for name in ("sizes", "area") if getattr(self, name) is not None]:
            if self.crop == "adm":
                raise UserError(
                    f"data.crop adm takes one square, not data.{given[0]}; set data.crop to random or center"
                )
            if others := [*given[1:], *["resize"] * (self.resize is not None)]:
                raise UserError(f"data.{others[0]} and data.{given[0]} exclude each other; set one of them to null")
            self.training_sizes()

    def training_sizes(self) -> list[Size]:
        """Return (height, width) of the training crops.

        Raises:
            UserError: A size has another form than HxW, or no size has the area.
        """
        if self.sizes is not None:
            texts = self.sizes.split(",") if isinstance(self.sizes, str) else self.sizes
            sizes = [parse_size(text, "data.sizes") for text in texts]
        elif self.area is not None:
            limits = {"multiple": self.multiple, "max_ratio": self.max_ratio}
            given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
            sizes = sizes_of_area(*parse_size(self.area, "data.area"), **given)
        else:
            return [(self.resolution, self.resolution)]
        return BucketTransform(sizes).sizes

    def training_transform(self, pixels: PixelSpec = RGB) -> ImageTransform | BucketTransform:
        """Return the transform of the training images: to one size, or to the nearest of several."""
        if self.sizes is None and self.area is None:
            return self._transform(pixels, crop=self.crop, flip=self.flip)
        return BucketTransform(
            self.training_sizes(), crop="random" if self.crop == "random" else "center", flip=self.flip,
            colour_profiles=self.colour_profiles, max_pixels=self.max_pixels, pixels=pixels,
        )  # fmt: skip

    def validation_transform(self, pixels: PixelSpec = RGB) -> ImageTransform:
        return self._transform(pixels, crop="adm" if self.crop == "adm" else "center", flip=False)

    def _transform(self, pixels: PixelSpec, *, crop: Literal["random", "center", "adm"], flip: bool) -> ImageTransform:
        return ImageTransform(
            size=self.resolution, resize=self.resize, crop=crop, flip=flip, colour_profiles=self.colour_profiles,
            max_pixels=self.max_pixels, pixels=pixels,
        )  # fmt: skip

    def loaders(
        self, *, batch_size: int, accumulation: int, seed: int, rank: int, world_size: int, pixels: PixelSpec = RGB
    ) -> tuple[TrainingLoader, EvaluationLoader | None]:
        """Build the training loader of this process, and the validation loader, which is complete on every process.

        `pixels` are the model's images.

        Raises:
            UserError: The images do not exist, or are too few to hold some out.
        """
        source = open_source(self.train)
        if rank == 0:
            for line in source.account().concerns():
                _log.warning("data.train: %s", line)
        indices: list[int] | None = None
        validation: tuple[Source, list[int] | None] | None = None
        if self.validation is not None and self.validation_images:
            held_out = open_source(self.validation)
            validation = held_out, list(range(min(self.validation_images, len(held_out))))
        elif self.validation_images:
            if len(source) < 2:
                raise UserError(f"{self.train} has {len(source)} image; one must be held out: set validation_images: 0")
            indices, chosen = split_holdout(source, min(self.validation_images, len(source) // 2), seed=0)
            validation = source, chosen
        transform = self.training_transform(pixels)
        total = len(source) if indices is None else len(indices)
        shown = rank == 0 and isinstance(transform, BucketTransform)
        with ProgressDisplay("reading the sizes of images", -(-total // world_size), shown=shown) as progress:
            training = TrainingLoader(
                source, transform, batch_size=batch_size, accumulation=accumulation, seed=seed, rank=rank,
                world_size=world_size, workers=self.workers, max_bad_fraction=self.max_bad_fraction, indices=indices,
                cache_bytes=self.cache_megabytes * 2**20, progress=progress,
            )  # fmt: skip
        if rank == 0 and training.buckets is not None:
            _warn_of_small(training.buckets, training.global_batch)
        if validation is None:
            return training, None
        return training, EvaluationLoader(
            validation[0], self.validation_transform(pixels), batch_size=batch_size, workers=self.workers,
            max_bad_fraction=self.max_bad_fraction, indices=validation[1],
        )  # fmt: skip


def _warn_of_small(buckets: Buckets, global_batch: int) -> None:
    """Log the sizes whose steps contain an image more than once."""
    small = buckets.smaller_than(global_batch)
    if small:
        names = sorted(small, key=lambda name: -small[name])
        listed = ", ".join(f"{name} ({small[name]})" for name in names[:8]) + (", ..." if len(names) > 8 else "")
        _log.warning(
            "%d of %d sizes have fewer images than a step, %d, so that their steps contain images several times, with "
            "other crops: %s. To avoid it, choose other data.sizes, or with data.area a larger data.multiple or a "
            "smaller data.max_ratio", len(small), len(buckets.sizes), global_batch, listed,
        )  # fmt: skip
