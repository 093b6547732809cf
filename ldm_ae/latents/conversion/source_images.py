"""The encoded pixels, recreated from the images for a trainer that needs both latents and images."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import BadImage, ImageTransform, Source, described_options
from ldm_ae.images.pixels import RGB
from ldm_ae.images.uint8 import to_uint8
from ldm_ae.latents.formats.interface import EncodedImages, Sample
from ldm_ae.latents.store.reader import LatentStore


class SourceImages(EncodedImages):
    """Images by key, transformed as the store records.

    Args:
        store: The store of the encoded images.
        source: The current source of the images.

    Raises:
        UserError: The store does not record how its images were transformed.
    """

    def __init__(self, store: LatentStore, source: Source):
        self._store = store
        self._source = source
        self._places: dict[str, int] | None = None
        described = store.request.transform
        if not {"resize", "crop", "flip", "background"} <= described.keys():
            raise UserError(f"{store.path} does not record how its images were cropped, so the images cannot be added")
        self._options = described_options(described)
        pixels = self._options["pixels"]
        if pixels != RGB:
            raise UserError(
                f"{store.path} has latents of images that are {pixels}, and the trainer reads images of RGB in 8 bits "
                "beside the latents; choose a format of latents alone"
            )

    def png(self, sample: Sample) -> bytes:
        """See `EncodedImages.png`."""
        try:
            raw = self._source[self._find(sample)]
            encoded = self._store.index["source_hash"][sample.index_row].as_py()
            if encoded is not None and hashlib.sha256(raw.data).hexdigest() != encoded:
                raise UserError(f"{sample.key} in the images is not the encoded one; encode it again")
            transform = ImageTransform(size=sample.size, **self._options)
            pixels = transform(transform.decode(raw.data).image).pixel_values
        except (BadImage, OSError) as error:
            raise UserError(f"{sample.key} in the images cannot be read: {error}") from error
        buffer = io.BytesIO()
        values = to_uint8(pixels).permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(values)).save(buffer, format="PNG")
        return buffer.getvalue()

    def _find(self, sample: Sample) -> int:
        """Return the image's index, which is the row in the store's index if the source is unchanged."""
        if sample.index_row < len(self._source) and self._source.key(sample.index_row) == sample.key:
            return sample.index_row
        if self._places is None:
            self._places = {self._source.key(index): index for index in range(len(self._source))}
        if sample.key not in self._places:
            raise UserError(f"the images lack {sample.key}, which the store holds; give the images that were encoded")
        return self._places[sample.key]
