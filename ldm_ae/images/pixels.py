"""The meaning of an image's numbers: how many channels, of which quantities, in which range.

A model's `spec` has one for its images; everything else that takes images (transforms, losses, discriminators,
metrics) declares its own, and the two are compared where they meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError


class Meaning(NamedTuple):
    """A supported meaning of the channels."""

    channels: int
    range: tuple[float, float]
    mode: str
    """Pillow's mode of an 8-bit image with this meaning."""


MEANINGS: dict[str, Meaning] = {"rgb": Meaning(3, (-1.0, 1.0), "RGB")}
"""The supported meanings, by name."""

OVERSHOOT = 0.5
"""Distance from [-1, 1] to accepted pixel values: sharp resizing filters ring at edges."""
_CONVERTING_CALL = "model.encode_images(images)"
"""The call that converts images of other types, for messages."""
_range_is_certain: ContextVar[bool] = ContextVar("range_is_certain", default=False)


@contextmanager
def images_in_range() -> Iterator[None]:
    """Encode without `require_range`, which would wait for an accelerator: for images that were decoded here."""
    token = _range_is_certain.set(True)
    try:
        yield
    finally:
        _range_is_certain.reset(token)


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """Images of a model, a data set, a loss or a metric: (B, channels, H, W)."""

    channels: int
    meaning: str
    """Meaning of the channels, in order: `rgb`."""
    range: tuple[float, float] = (-1.0, 1.0)
    """The smallest and the largest value."""

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels < 1:
            raise UserError(f"pixels: channels must be a whole number above 0, got {self.channels!r}")
        if not self.range[0] < self.range[1]:
            raise UserError(f"pixels: range must go from a smaller to a larger value, got {self.range}")

    @property
    def mode(self) -> str:
        """Pillow's mode of such an image in 8 bits; UserError if the meaning is not supported."""
        self.require_supported("an image")
        return MEANINGS[self.meaning].mode

    @property
    def words(self) -> str:
        """Description for protocols and files, such as `RGB in [-1, 1]`."""
        low, high = self.range
        return f"{self.mode} in [{low:g}, {high:g}]"

    def require_supported(self, what: str) -> PixelSpec:
        """Return self; raise a one-line UserError if nothing here reads or writes such images.

        Args:
            what: Description of the images, with which the message begins.
        """
        meaning = MEANINGS.get(self.meaning)
        if meaning is None or (meaning.channels, meaning.range) != (self.channels, self.range):
            supported = ", ".join(
                str(PixelSpec(channels=m.channels, meaning=name, range=m.range)) for name, m in MEANINGS.items()
            )
            raise UserError(f"{what}: images are {self}; supported are {supported}")
        return self

    def require_match(self, needed: PixelSpec, user: str) -> None:
        """Raise a one-line UserError unless these images, a model's, match those of `user`.

        Args:
            needed: Images that `user` declares.
            user: Name of a transform, a network, a loss or a metric.
        """
        if self != needed:
            raise UserError(f"{user} requires images that are {needed}, but the model uses {self}")

    def require_images(self, images: Tensor, name: str = "pixel_values") -> None:
        """Raise UserError unless `images` is a floating-point tensor (B, channels, H, W)."""
        if not isinstance(images, Tensor):
            raise UserError(
                f"{name} must be a tensor (B, {self.channels}, H, W), got {type(images).__name__}; "
                f"call {_CONVERTING_CALL}"
            )
        if not images.is_floating_point():
            low, high = self.range
            raise UserError(
                f"{name} must be floating point in [{low:g}, {high:g}], got {images.dtype}; call {_CONVERTING_CALL}"
            )
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UserError(f"{name} must be (B, {self.channels}, H, W), got {tuple(images.shape)}")

    def require_range(self, images: Tensor, name: str = "pixel_values") -> None:
        """Raise UserError unless all values are finite and at most `OVERSHOOT` outside of the range.

        On an accelerator, this waits for the images. `images_in_range` disables it.
        """
        if images.numel() == 0 or _range_is_certain.get():
            return
        low, high = self.range
        least, most = torch.stack(torch.aminmax(images.detach())).tolist()
        if not (math.isfinite(least) and math.isfinite(most)):
            raise UserError(f"{name} must be finite, got values from {least:g} to {most:g}")
        if least < low - OVERSHOOT or most > high + OVERSHOOT:
            raise UserError(
                f"{name} must be in [{low:g}, {high:g}], got values from {least:.4g} to {most:.4g}; for levels 0 to "
                f"255 call {_CONVERTING_CALL} with uint8"
            )

    def __str__(self) -> str:
        low, high = self.range
        return f"{self.meaning} ({self.channels} channel{'s' * (self.channels != 1)} in [{low:g}, {high:g}])"


RGB = PixelSpec(channels=3, meaning="rgb")
"""Three channels in [-1, 1]: red, green, blue, with sRGB's curve."""


def of_channels(channels: int) -> PixelSpec:
    """Return the pixels of a network whose configuration declares the number of channels but not their meaning."""
    names = {meaning.channels: name for name, meaning in MEANINGS.items()}
    return PixelSpec(channels=channels, meaning=names.get(channels, "unknown"))
