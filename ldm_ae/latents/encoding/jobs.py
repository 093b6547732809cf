"""The interfaces of encoding: the job, the engine that executes it, and the summary that it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ldm_ae.data import Account, BucketTransform, ImageTransform, Source, WholeTransform
from ldm_ae.images.crops import Crops
from ldm_ae.latents.encoding.config import EncodeConfig
from ldm_ae.latents.store.annotated import AnnotationCount
from ldm_ae.latents.store.format import StoreRequest
from ldm_ae.models import Autoencoder, ChannelStatistics

Progress = Callable[[int, int], None]
"""A function that is called with the number of images done and their total."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All data that another process needs in order to encode units of a store; it can be pickled."""

    path: Path
    """The store's absolute path."""
    request: StoreRequest
    plan: dict[str, Any]
    """The plan of the `StoreWriter` in the process that has the store's lock."""
    model: Autoencoder
    """The model, in float32."""
    source: Source
    transform: ImageTransform | BucketTransform | WholeTransform
    config: EncodeConfig
    working_folder: Path
    """The folder in which the command was started, for images with a relative name."""


class Engine(Protocol):
    """An encoder of units in other processes."""

    def check(self, device: str) -> None:
        """Raise `UserError` if it cannot encode on this device, as the user named it. Called before any writing."""

    def __call__(self, job: Job, units: range, progress: Progress | None) -> None:
        """Encode the units; return when all are done."""


@dataclass(frozen=True, kw_only=True)
class EncodeSummary:
    """The results of `encode_images`."""

    path: Path
    images: int
    """Number of valid images, each in the store once."""
    bad: dict[str, str]
    """Reasons by key for the images that could not be used."""
    statistics: ChannelStatistics
    """Statistics of the stored latents, without mirror images."""
    buckets: dict[str, int]
    """Number of valid images by HxW of the pixels, in the order of their areas."""
    crops: Crops
    """The parts of the images that were cropped off."""
    colour_profiles: dict[str, int]
    """Number of valid images by the profile from which they were converted to sRGB, or that was not applied."""
    already_complete: bool
    """Whether the store already existed, made by the same command, and nothing was encoded."""
    precision: str
    """Precision of the encoder: fp32, bf16 or fp16."""
    fp32_fallbacks: int
    """Number of batches that overflowed in fp16 and were encoded in float32 from the original weights; mirror images
    are separate batches. 0 in other precisions."""
    account: Account
    """The files that the source used and skipped."""
    annotations: AnnotationCount
    """Captions and labels of the valid images."""
    warnings: list[str]
    """Further warnings for the user, one line each."""
