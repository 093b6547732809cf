"""Selection of the images that are held out from training, for validation and the diffusion score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from ldm_ae.core.errors import UserError
from ldm_ae.data.account import Account
from ldm_ae.data.sources.interface import RawImage, Source, Wrapped


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


class Subset(Wrapped):
    """Some images of another source, in the order of their indices in it.

    Args:
        source: The other source.
        indices: Indices of the images in it.
    """

    def __init__(self, source: Source, indices: Sequence[int]):
        super().__init__(source)
        self._indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, index: int) -> str:
        """See `Source.key`."""
        return self._source.key(self._at(index))

    def account(self) -> Account:
        """Return the other source's account, with the number of these images."""
        return replace(self._source.account(), images=len(self))

    def bytes_of(self, index: int) -> int | None:
        """See `Source.bytes_of`."""
        return self._source.bytes_of(self._at(index))

    def open_image(self, index: int) -> BinaryIO:
        """See `Source.open_image`."""
        return self._source.open_image(self._at(index))

    def __getitem__(self, index: int) -> RawImage:
        return self._source[self._at(index)]

    def _at(self, index: int) -> int:
        return int(self._indices[index])
