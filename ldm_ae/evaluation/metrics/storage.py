"""The size of an image's latents as a latent store keeps them on disk, for each dtype that a store can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics._of_model import ModelMetric
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.models import Autoencoder
from ldm_ae.models.stored_rows import STORED_DTYPES, row_bytes, stored_names

NUMBERS, INDICES = "numbers_per_pixel", "stored_bits_per_pixel_indices"
_BITS = "bits per pixel"
_FILE = "of an image in the file, with its label, index and crop (64 bytes), without the mirrored image"


def stored_key(dtype: str) -> str:
    """Return the key of the rate of stored latents of a dtype, such as `fp16`."""
    return f"stored_bits_per_pixel_{dtype}"


class Storage(ModelMetric):
    """Numbers per pixel of the latents, and bits per pixel of the smallest store in each dtype.

    A shard's header, which up to `--shard-size` images have in common, is not counted.
    """

    name = "storage"
    group = "rate"
    label = "Storage"
    explanation = "Size of the latents on disk, by dtype."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        NUMBERS: ScoreInfo(
            label="Latent numbers per pixel",
            explanation="Elements of the latents of an image, which a diffusion model sees, per pixel.",
        ),
        **{
            stored_key(dtype): ScoreInfo(
                label=f"Stored in {dtype}", unit=_BITS,
                explanation=f"Bits {_FILE}, by encode --store samples --no-flips --dtype {dtype}.",
            )
            for dtype in STORED_DTYPES
        },
        INDICES: ScoreInfo(
            label="Stored indices", unit=_BITS,
            explanation=f"Bits {_FILE}, by encode --store lean --no-flips: indices of codes, in the narrowest integers "
            "of 1, 2, 4 or 8 bytes.",
        ),
    }  # fmt: skip

    def per_image(self, model: Autoencoder, latents: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return (B,) numbers and bits per pixel, the same for all images of one size."""
        height, width = pixel_values.shape[-2:]
        spec, pixels, bucket = model.latent_spec, height * width, f"{height}x{width}"
        found = {NUMBERS: latents[0].numel() / pixels}
        for name, dtype in STORED_DTYPES.items():
            names = stored_names(["latents"], dtype, flips=False)
            found[stored_key(name)] = 8 * row_bytes(names, bucket, spec, dtype) / pixels
        if spec.codebook_size is not None:
            names = stored_names(["indices"], torch.float32, flips=False)
            found[INDICES] = 8 * row_bytes(names, bucket, spec, torch.float32) / pixels
        return {key: torch.full((len(latents),), value, dtype=torch.float64) for key, value in found.items()}
