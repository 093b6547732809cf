"""The images of a comparison: decoded once, and read again for each model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ldm_ae.comparison.result import Shown
from ldm_ae.core.errors import UserError
from ldm_ae.data import Batch, EvaluationLoader
from ldm_ae.images.uint8 import from_levels, to_uint8
from ldm_ae.images.views import View

RESERVE = 2**30
"""Bytes of the disk that stay free; images that do not fit beside them are decoded again for each model."""


@dataclass(frozen=True)
class _Entry:
    """A batch without its pixels, and their shape."""

    batch: Batch
    shape: tuple[int, ...]


class SharedImages:
    """Batches of images that many models read. The first pass decodes them and writes their 8-bit levels to a file.

    Images that 8 bits do not hold, or that do not fit on the disk, are decoded again in each pass.

    Args:
        loader: The images.
        file: Path of the file, which `close` removes.
        pictures: Number of images to keep for the page.
        shown: The view by which the page shows images that are not RGB; None for RGB.
        progress: Called with the number of images done.

    Raises:
        UserError: There are no images, or too many are unusable.
    """

    def __init__(
        self, loader: EvaluationLoader, file: Path, *, pictures: int, shown: View | None = None,
        progress: Callable[[int], None] | None = None,
    ):  # fmt: skip
        self.first: list[Shown] = []
        """The first images."""
        self.count = 0
        self._loader: EvaluationLoader | None = loader
        self._path = file
        self._entries: list[_Entry] = []
        digest = hashlib.sha256()
        stored = True
        with open(file, "wb") as output:
            for batch in loader:
                levels = to_uint8(batch.pixel_values)
                exact = torch.equal(from_levels(levels), batch.pixel_values)
                data = (levels if exact else batch.pixel_values).contiguous().numpy().tobytes()
                digest.update("\n".join([*batch.keys, str(tuple(levels.shape))]).encode() + data)
                stored = stored and exact and shutil.disk_usage(file.parent).free > RESERVE + len(data)
                if stored:
                    output.write(data)
                    empty = replace(batch, pixel_values=torch.empty(0), rejected={})
                    self._entries.append(_Entry(empty, tuple(levels.shape)))
                wanted = max(pictures - len(self.first), 0)
                drawn = levels[:wanted] if shown is None else to_uint8(shown.single(batch.pixel_values[:wanted]))
                rows = zip(batch.keys[:wanted], drawn, strict=True)
                self.first += [Shown(key=key, image=image.clone()) for key, image in rows]
                self.count += len(batch.keys)
                if progress is not None:
                    progress(self.count)
        self.rejected: dict[str, str] = dict(loader.rejected)
        """Reasons by key of the unusable images."""
        self.sha256 = digest.hexdigest()
        """Hash of keys, sizes and pixels."""
        if stored:
            self._loader = None  # ends its workers
        else:
            self._entries = []
            self.close()
        if self.count == 0:
            self.close()
            raise UserError("there are no images to compare the models on; give other IMAGES")

    def __iter__(self) -> Iterator[Batch]:
        if self._loader is not None:
            yield from self._loader
            return
        with open(self._path, "rb") as file:
            for entry in self._entries:
                yield replace(entry.batch, pixel_values=from_levels(_read(file, entry.shape)))

    def close(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            self._path.unlink()


def _read(file: BinaryIO, shape: tuple[int, ...]) -> Tensor:
    data = bytearray(file.read(prod(shape)))
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)
