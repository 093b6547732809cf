"""A small store for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm_ae.data import ImageTransform, open_source
from ldm_ae.latents import EncodeSummary, encode_images
from ldm_ae.models import Autoencoder


def encode(model: Autoencoder, images: Path, store: Path, **changes: Any) -> EncodeSummary:
    """Encode a folder at 32x32 on the CPU: twelve images, batches of three, shards of five."""
    options: dict[str, Any] = dict(
        transform=ImageTransform(size=32), source_name="images", batch_size=3, device="cpu", shard_size=5
    )
    return encode_images(model, open_source(images), store, **(options | changes))
