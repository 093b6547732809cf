"""The shapes and dtypes of what a latent store keeps of one image, which follow from the model's specification.

`ldm_ae/latents/store/format.py` describes the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from ldm_ae.core import precision
from ldm_ae.models.spec import LatentSpec

STORED_DTYPES = {**precision.DTYPES, "uint8": torch.uint8}
"""The dtype of stored latents and moments, by the name that commands take."""
INDEX_DTYPES = (torch.uint8, torch.uint16, torch.int32, torch.int64)
"""Dtypes of stored indices, narrowest first."""
SCALE, ERROR = "_scale", "squared_error"
"""The suffix of the name of the scale of a tensor in uint8, and the name of the latents' error."""
BOOKKEEPING: dict[str, tuple[int, ...]] = {"labels": (), "index": (), "original_size": (2,), "crop_ltrb": (4,)}
"""Shape of one row of the int64 tensors, by name."""


def stored_names(kinds: Sequence[str], dtype: torch.dtype, *, flips: bool) -> list[str]:
    """Return the names of all tensors of a shard.

    Args:
        kinds: Those of `latents`, `moments` and `indices` that the store keeps.
        dtype: Dtype of latents and moments; uint8 adds scales and the error.
        flips: Whether the mirror images' are kept too.
    """
    names = [f"{kind}{view}" for kind in kinds for view in (("", "_flip") if flips else ("",))]
    scales = [f"{name}{SCALE}" for name in names if not name.startswith("indices")] if dtype == torch.uint8 else []
    return [*names, *scales, *([ERROR] if scales else []), *BOOKKEEPING]


def row_bytes(names: Iterable[str], bucket: str, spec: LatentSpec, dtype: torch.dtype) -> int:
    """Return the bytes that an image of `bucket` (HxW of its pixels) takes in tensors of these names."""
    rows = [row_of_tensor(name, bucket, spec, dtype) for name in names]
    return sum(math.prod(shape) * kind.itemsize for shape, kind in rows)


def index_dtype(codebook_size: int) -> torch.dtype:
    """Return the narrowest of `INDEX_DTYPES` that holds every index of a codebook."""
    return next(dtype for dtype in INDEX_DTYPES if codebook_size - 1 <= torch.iinfo(dtype).max)


def row_of_tensor(name: str, bucket: str, spec: LatentSpec, dtype: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
    """Return shape and dtype of one image's row of a shard's tensor; `dtype` is that of the store's latents."""
    if name in BOOKKEEPING:
        return BOOKKEEPING[name], torch.int64
    if name == ERROR:
        return (spec.channels,), torch.float32
    if name.endswith(SCALE):
        (channels, *_), _ = row_of_tensor(name.removesuffix(SCALE), bucket, spec, dtype)
        return (channels, 2), torch.float32
    height, width = (int(side) for side in bucket.split("x"))
    size = spec.latent_size(height, width)
    if name.startswith("indices"):
        if spec.codebook_size is None:
            raise ValueError("the model has no codebook")
        levels = () if spec.codebook_levels is None else (spec.codebook_levels,)
        return (*levels, *size), index_dtype(spec.codebook_size)
    return (spec.channels * (2 if name.startswith("moments") else 1), *size), dtype
