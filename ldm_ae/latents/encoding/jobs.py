"""What encoding is asked for, who does it, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ldm_ae.data import Account, BucketTransform, ImageTransform, Source
from ldm_ae.images.crops import Crops
from ldm_ae.latents.encoding.config import EncodeConfig
from ldm_ae.latents.store.annotated import AnnotationCount
from ldm_ae.latents.store.format import StoreRequest
from ldm_ae.models import Autoencoder, ChannelStatistics

Progress = Callable[[int, int], None]
"""Called with the number of images done and their total."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that another process needs in order to encode units of a store; it can be pickled."""

    path: Path
    """The store's, absolute."""
    request: StoreRequest
    plan: dict[str, Any]
    """Of the `StoreWriter` in the process that has the store's lock."""
    model: Autoencoder
    """In float32."""
    source: Source
    transform: ImageTransform | BucketTransform
    config: EncodeConfig
    working_folder: Path
    """Where the command was given, for images with a relative name."""


class Engine(Protocol):
    """Encodes units in other processes."""

    def check(self, device: str) -> None:
        """UserError if it cannot encode on this device, as the user named it. Called before anything is written."""

    def __call__(self, job: Job, units: range, progress: Progress | None) -> None:
        """Encode the units; returns when all are done."""


@dataclass(frozen=True, kw_only=True)
class EncodeSummary:
    """What `encode_images` did."""

    path: Path
    images: int
    """Good images, each in the store once."""
    bad: dict[str, str]
    """Reason by key of the images that could not be used."""
    statistics: ChannelStatistics
    """Of the stored latents, mirror images not counted."""
    buckets: dict[str, int]
    """Good images by HxW of the pixels, in the order of their areas."""
    crops: Crops
    """What was cut off."""
    colour_profiles: dict[str, int]
    """Good images by the profile from which they were converted to sRGB, or that was not applied."""
    already_complete: bool
    """The store was there, made by the same command; nothing was encoded."""
    precision: str
    """fp32, bf16 or fp16: what the encoder ran in."""
    fp32_fallbacks: int
    """Batches that overflowed in fp16 and were encoded in float32 from the original weights; mirror images are batches
    of their own. 0 in other precisions."""
    account: Account
    """What the source took and passed over."""
    annotations: AnnotationCount
    """Captions and labels of the good images."""
    warnings: list[str]
    """What else a user has to know, a line each."""
