"""Selection of the images that are held out from training, for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ldm_ae.core.errors import UserError
from ldm_ae.data.sources.interface import Source


def split_holdout(source: Source, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Split off `count` images for validation: those with the smallest hashed keys.

    The selection depends on the images' keys, not on their positions: adding images to the data set moves few of the
    old ones from one side to the other.

    Returns:
        Training and held-out indices, both ascending, disjoint, together the whole source.

    Raises:
        UserError: No image would remain for training.
    """
    return split_keys([source.key(i) for i in range(len(source))], count, seed)


def split_keys(keys: Sequence[str], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Split as `split_holdout`, for images given by their keys alone."""
    if not 0 <= count < len(keys):
        raise UserError(f"cannot hold out {count} of {len(keys)} images; at least one must be left to train on")
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    held_out = set(sorted(range(len(keys)), key=digests.__getitem__)[:count])
    return [i for i in range(len(keys)) if i not in held_out], sorted(held_out)
