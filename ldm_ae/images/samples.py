"""Samples of an image at the depth of its file, with the part of Pillow's interface that transforms use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm_ae.images.missing import MISSING
from ldm_ae.images.pixels import PixelSpec

_TURNS: dict[Image.Transpose, Callable[[NDArray[Any]], NDArray[Any]]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda planes: planes[..., ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda planes: planes[..., ::-1, :],
    Image.Transpose.ROTATE_90: lambda planes: np.rot90(planes, 1, axes=(-2, -1)),
    Image.Transpose.ROTATE_180: lambda planes: np.rot90(planes, 2, axes=(-2, -1)),
    Image.Transpose.ROTATE_270: lambda planes: np.rot90(planes, 3, axes=(-2, -1)),
    Image.Transpose.TRANSPOSE: lambda planes: planes.swapaxes(-2, -1),
    Image.Transpose.TRANSVERSE: lambda planes: np.rot90(planes, 2, axes=(-2, -1)).swapaxes(-2, -1),
}
_SOLID = 1e-4
"""Least opacity at which a resized colour is the mean of the visible colours."""


class Samples:
    """An image of any channels.

    Args:
        planes: (C, H, W), the samples as stored, or float32 in the same units after resizing.
        pixels: The images that they belong to.
        present: (C, H, W) bool, where the samples are not missing; None if none is, or the planes are as stored.
        resized: Whether they are results of an interpolation.
    """

    def __init__(
        self, planes: NDArray[Any], pixels: PixelSpec, *, present: NDArray[np.bool_] | None = None,
        resized: bool = False,
    ) -> None:  # fmt: skip
        self.planes = planes
        self.pixels = pixels
        if present is None and pixels.missing is not None:
            found = pixels.mask(_tensor(planes)).numpy()
            present = None if found.all() else found
        self.present = present
        self._resized = resized

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    @property
    def width(self) -> int:
        return self.planes.shape[2]

    @property
    def height(self) -> int:
        return self.planes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the samples."""
        return self.planes.nbytes

    def _made(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Samples:
        present = None if self.present is None else change(self.present)
        return Samples(change(self.planes), self.pixels, present=present, resized=self._resized)

    def crop(self, box: tuple[int, int, int, int]) -> Samples:
        """Return the part within left, top, right, bottom."""
        left, top, right, bottom = box
        return self._made(lambda planes: planes[:, top:bottom, left:right])

    def transpose(self, method: Image.Transpose) -> Samples:
        """Return the image mirrored or turned, as Pillow's `transpose`."""
        return self._made(_TURNS[method])

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> Samples:
        """Return the image in another size (width, height), each channel by Pillow's filter in floating point.

        A result is the mean of the samples that are present; it is missing where these have less than half the weight.
        Colours of RGBA are weighted with alpha, so that hidden ones do not show at edges.
        """
        weights = np.ones_like(self.planes, dtype=np.float32)
        if self.present is not None:
            weights[~self.present] = 0.0
        planes = np.where(weights > 0, self.planes, 0).astype(np.float32)
        if self.pixels.meaning == "rgba":
            low, high = self.pixels.low[-1], self.pixels.high[-1]
            weights[:-1] *= ((planes[-1] - low) / (high - low)).clip(0.0, 1.0)
        if (weights == 1.0).all():
            return Samples(_resize(planes, size, resample), self.pixels, resized=True, present=_all(planes, size))
        shares = _resize(weights, size, resample)
        means = _resize(planes * weights, size, resample) / np.maximum(shares, _SOLID)
        present = _all(planes, size)
        if self.present is not None:
            present = _resize(self.present.astype(np.float32), size, resample) >= 0.5
        plain = shares < _SOLID  # only hidden colours, or nothing
        return Samples(
            np.where(plain, _resize(planes, size, resample), means), self.pixels, present=present, resized=True
        )

    def pixel_values(self) -> Tensor:
        """Return (C, H, W) float32 in [-1, 1], with `MISSING` where samples are missing."""
        values = self.pixels.scale(_tensor(self.planes))
        if self._resized:  # sharp filters ring at edges
            values = values.clamp_(-1.0, 1.0)
        if self.present is None:
            return values
        return values.masked_fill_(~_tensor(self.present), MISSING)


def _tensor(planes: NDArray[Any]) -> Tensor:
    """Return a copy, because arrays of files are not writable."""
    return torch.from_numpy(np.array(planes, order="C"))


def _all(planes: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return that every sample of a resized image is present."""
    return np.ones((len(planes), size[1], size[0]), dtype=np.bool_)


def _resize(planes: NDArray[np.float32], size: tuple[int, int], resample: Image.Resampling) -> NDArray[np.float32]:
    return np.stack([np.asarray(Image.fromarray(plane).resize(size, resample)) for plane in planes])
