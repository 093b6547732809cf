"""The meaning of an image's numbers: how many channels, of which quantities, in which range.

A model's `spec` has one for its images; everything else that takes images (transforms, losses, discriminators,
metrics) declares its own, and the two are compared where they meet.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.missing import MISSING


class Meaning(NamedTuple):
    """A supported meaning of the channels."""

    channels: int | None
    """Number of channels, None for any."""
    range: tuple[float, float]
    mode: str | None
    """Pillow's mode of an 8-bit image with this meaning, None if Pillow has none."""
    names: tuple[str, ...] = ()
    """Names of the channels, in order."""


MEANINGS: dict[str, Meaning] = {
    "rgb": Meaning(3, (-1.0, 1.0), "RGB", ("red", "green", "blue")),
    "grey": Meaning(1, (-1.0, 1.0), "L", ("grey",)),
    "rgba": Meaning(4, (-1.0, 1.0), "RGBA", ("red", "green", "blue", "alpha")),
    "channels": Meaning(None, (-1.0, 1.0), None),
}
"""The supported meanings, by name."""
BITS = (8, 16, 0)
"""Bits of a stored sample; 0 is floating point."""

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
    """Images of a model, a data set, a loss or a metric: tensors (B, channels, H, W), and samples stored in files.

    Raises:
        UserError: A value is not possible, or two contradict each other.
    """

    channels: int
    meaning: str
    """Meaning of the channels, in order: one of `MEANINGS`. The last channel of `rgba` is alpha, -1 transparent and 1
    opaque; its colours are those of the file, not multiplied by alpha."""
    range: tuple[float, float] = (-1.0, 1.0)
    """The smallest and the largest value of tensors."""
    names: tuple[str, ...] = ()
    """Names of the channels; () becomes the names of the meaning, or `channel 0`, `channel 1`, ..."""
    low: tuple[float, ...] = ()
    """Stored value of each channel, in the file's units, that becomes -1; () becomes 0."""
    high: tuple[float, ...] = ()
    """Stored value of each channel that becomes 1; () becomes the largest of the files, or 1 for floating point."""
    bits: int = 8
    """Bits of an integer sample in files, 8 or 16, signed if a `low` or `missing` is below 0; 0 for floating point of
    32 bits."""
    missing: float | None = None
    """Stored value that marks missing data, which may be NaN. Losses and scores leave such samples out."""
    clip: bool = False
    """Whether stored values outside of `low` and `high` are clamped, as where these are quantiles; otherwise an image
    with such values is a bad one."""

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels < 1:
            raise UserError(f"pixels: channels must be a whole number above 0, got {self.channels!r}")
        if not self.range[0] < self.range[1]:
            raise UserError(f"pixels: range must go from a smaller to a larger value, got {self.range}")
        if type(self.bits) is not int or self.bits not in BITS:
            raise UserError(f"pixels: bits must be 8, 16 or 0 (floating point), got {self.bits!r}")
        if self.missing is not None:
            object.__setattr__(self, "missing", float(self.missing))
        signed = min(*(float(value) for value in self.low), self.missing or 0.0, 0.0) < 0
        white = float(2 ** (self.bits - signed) - 1) if self.bits else 1.0
        for field, default in (("names", self._default_names()), ("low", (0.0,)), ("high", (white,))):
            values = tuple(getattr(self, field)) or default
            if field != "names":
                values = tuple(float(value) for value in (values * self.channels if len(values) == 1 else values))
            if len(values) != self.channels:
                raise UserError(f"pixels: {field} has {len(values)} values for {self.channels} channels")
            object.__setattr__(self, field, values)
        if len(set(self.names)) < self.channels:
            raise UserError(f"pixels: names must differ, got {', '.join(self.names)}")
        self._require_values()

    def _default_names(self) -> tuple[str, ...]:
        meaning = MEANINGS.get(self.meaning)
        if meaning is not None and len(meaning.names) == self.channels:
            return meaning.names
        return tuple(f"channel {number}" for number in range(self.channels))

    def _require_values(self) -> None:
        """Raise UserError unless each `low` is below its `high` and both are values that the files can hold."""
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UserError(f"pixels: {name}: low must be a number below high, got {low:g} and {high:g}")
        if self.bits:
            limits = np.iinfo(self.dtype)
            if min(self.low) < limits.min or max(self.high) > limits.max:
                raise UserError(
                    f"pixels: samples of {self.bits} bits are {limits.min} to {limits.max}, got low {min(self.low):g} "
                    f"and high {max(self.high):g}; set bits to 16, or to 0 for floating point"
                )
            if self.missing is not None and not limits.min <= self.missing <= limits.max:
                raise UserError(f"pixels: missing is {self.missing:g}; samples of {self.bits} bits cannot hold it")

    def _identity(self) -> tuple[object, ...]:
        """Return what makes two specifications equal. NaN, which differs from itself, is replaced by its text."""
        return (
            self.channels, self.meaning, self.range, self.names, self.low, self.high, self.bits, repr(self.missing),
            self.clip,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PixelSpec) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    # ------------------------------------------------------------------------------------------- stored samples

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of the samples in files: uint8, uint16, int8, int16 or float32."""
        if self.bits == 0:
            return np.dtype(np.float32)
        return np.dtype(f"{'int' if min(*self.low, self.missing or 0) < 0 else 'uint'}{self.bits}")

    def normalize(self, stored: Tensor) -> Tensor:
        """Convert stored samples (..., channels, H, W) of any type to float32 pixel values in `range`, [-1, 1].

        Missing samples become `ldm_ae.images.missing.MISSING`.
        """
        values = self.scale(stored)
        return values if self.missing is None else values.masked_fill_(~self.mask(stored), MISSING)

    def scale(self, stored: Tensor) -> Tensor:
        """Return `normalize` of samples of which none is missing.

        `clip` clamps; other values outside of `low` and `high` are converted to values outside of the range.
        """
        low, high = self._limits(stored.device)
        wide = stored.to(low.dtype)
        if torch.any(low):
            wide = wide - low
        values = (wide / ((high - low) / 2)).sub_(1.0).float()
        return values.clamp_(-1.0, 1.0) if self.clip else values

    def denormalize(self, pixel_values: Tensor) -> Tensor:
        """Convert pixel values (..., channels, H, W) to stored samples: the inverse of `normalize` of present data.

        Returns:
            A tensor of `dtype`, clamped to `low` and `high`; integers are rounded to the nearest.
        """
        low, high = self._limits(pixel_values.device)
        values = (pixel_values.float().clamp(-1.0, 1.0).to(low.dtype) + 1.0) * ((high - low) / 2) + low
        if self.bits:
            values = torch.minimum(torch.maximum(values.round(), low.ceil()), high.floor())
        return values.to(getattr(torch, self.dtype.name))

    def mask(self, stored: Tensor) -> Tensor:
        """Return a bool tensor shaped like `stored`, true where a sample is present and false where it is missing."""
        if self.missing is None:
            return torch.ones_like(stored, dtype=torch.bool)
        if math.isnan(self.missing):
            return ~torch.isnan(stored)
        return stored.to(torch.float64 if self.bits == 0 else torch.int32) != self.missing

    def _limits(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `low` and `high`, (channels, 1, 1), in float32, which is exact for integers of 16 bits, or float64."""
        dtype = torch.float32 if self.bits or device.type == "mps" else torch.float64
        low, high = (torch.tensor(v, dtype=dtype, device=device).view(-1, 1, 1) for v in (self.low, self.high))
        return low, high

    # ------------------------------------------------------------------------------------------- as text and JSON

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values; what has its default is left out, and NaN is the text `nan`."""
        plain = PixelSpec(channels=self.channels, meaning=self.meaning, bits=self.bits)
        written: dict[str, Any] = {"meaning": self.meaning, "channels": self.channels, "bits": self.bits}
        for field in ("range", "names", "low", "high"):
            if (value := getattr(self, field)) != getattr(plain, field):
                written[field] = list(value)
        if self.missing is not None:
            written["missing"] = self.missing if math.isfinite(self.missing) else str(self.missing)
        return written | ({"clip": True} if self.clip else {})

    @classmethod
    def from_json(cls, value: object) -> PixelSpec:
        """Return the specification that a recipe or a file gives: the name of a meaning, or a mapping of the fields.

        In a mapping, `meaning` may be left out: it is `channels` where `channels` is given, else `rgb`. `low` and
        `high` may be one number for all channels.

        Raises:
            UserError: It is something else, or has an unknown or impossible value.
        """
        if isinstance(value, str):
            value = {"meaning": value}
        if not isinstance(value, Mapping):
            raise UserError(f"pixels must be rgb, grey, rgba or a mapping with channels, got {value!r}")
        fields = dict(value)
        if "quantiles" in fields:
            raise UserError("pixels: quantiles are measured by ldm-ae train; give low and high here")
        known = ("meaning", "channels", "range", "names", "low", "high", "bits", "missing", "clip")
        if unknown := [str(key) for key in fields if key not in known]:
            raise UserError(f"pixels has no option {', '.join(unknown)}; it has {', '.join(known)}")
        meaning = fields.pop("meaning", "channels" if "channels" in fields else "rgb")
        if meaning not in MEANINGS:
            raise UserError(f"pixels: meaning is {meaning!r}; it must be one of {', '.join(MEANINGS)}")
        fields.setdefault("channels", MEANINGS[meaning].channels)
        if fields["channels"] is None:
            raise UserError("pixels: meaning is channels, whose number is missing; set channels")
        for field in ("range", "names", "low", "high"):
            if field in fields:
                fields[field] = _listed(field, fields[field])
        if isinstance(fields.get("missing", 0), str):
            fields["missing"] = _number("missing", fields["missing"])
        return cls(meaning=meaning, **fields).require_supported("pixels")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, ({field.name: getattr(self, field.name) for field in dataclasses.fields(self)},)

    @property
    def mode(self) -> str:
        """Pillow's mode of such an image in 8 bits; UserError if it has none."""
        self.require_supported("an image")
        mode = MEANINGS[self.meaning].mode
        if mode is None:
            raise UserError(f"images that are {self} are not colours; a picture shows chosen channels of them")
        return mode

    @property
    def words(self) -> str:
        """Description for protocols and files, such as `RGB in [-1, 1]`."""
        low, high = self.range
        return f"RGB in [{low:g}, {high:g}]" if self == RGB else str(self)

    def require_supported(self, what: str) -> PixelSpec:
        """Return self; raise a one-line UserError if nothing here reads or writes such images.

        Args:
            what: Description of the images, with which the message begins.
        """
        meaning = MEANINGS.get(self.meaning)
        if meaning is None or self.range != meaning.range or meaning.channels not in (None, self.channels):
            supported = ", ".join(
                str(PixelSpec(channels=m.channels, meaning=name)) for name, m in MEANINGS.items() if m.channels
            )
            raise UserError(f"{what}: images are {self}; supported are {supported}, and any number with names")
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
        plain = PixelSpec(channels=self.channels, meaning=self.meaning, bits=self.bits)
        own_limits = (self.low, self.high) != (plain.low, plain.high)
        return f"{self.meaning} ({self._samples(with_limits=own_limits)} in [{low:g}, {high:g}])"

    @property
    def stored(self) -> str:
        """Description of the samples in files, such as `grey (1 channel of 16 bits from 0 to 65535)`."""
        return f"{self.meaning} ({self._samples(with_limits=True)})"

    def _samples(self, *, with_limits: bool) -> str:
        words = f"{self.channels} channel{'s' * (self.channels != 1)}"
        if self.names != PixelSpec(channels=self.channels, meaning=self.meaning).names:
            words += f" {', '.join(self.names)}"
        if self.bits != PixelSpec.bits:
            words += f" of {self.bits} bits" if self.bits else " of floating point"
        if with_limits:
            words += f" from {_short(self.low)} to {_short(self.high)}"
        if self.missing is not None:
            words += f" without {self.missing:g}"
        return words


def _rebuilt(fields: dict[str, Any]) -> PixelSpec:
    """Return a copy from its fields, for pickle."""
    return PixelSpec(**fields)


def _short(values: tuple[float, ...]) -> str:
    """Return one number where all are equal, else all of them."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "/".join(f"{value:g}" for value in values)


def _number(field: str, value: object) -> float:
    """Return a number from a recipe; UserError for anything else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"pixels: {field} must be a number, got {value!r}") from None


def _listed(field: str, value: object) -> tuple[Any, ...]:
    """Return a list of names or numbers from a recipe, where one number may stand for all; UserError for others."""
    if field in ("low", "high") and not isinstance(value, list | tuple):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"pixels: {field} must be a list, got {value!r}")
    if field == "names":
        return tuple(str(name) for name in value)
    return tuple(_number(field, number) for number in value)


RGB = PixelSpec(channels=3, meaning="rgb")
"""Three channels in [-1, 1]: red, green, blue, with sRGB's curve."""
GREY = PixelSpec(channels=1, meaning="grey")
"""One channel of 8 bits."""
RGBA = PixelSpec(channels=4, meaning="rgba")
"""Red, green, blue and alpha of 8 bits."""


def of_channels(channels: int) -> PixelSpec:
    """Return the pixels of a network whose configuration declares the number of channels but not their meaning: RGB if
    there are three."""
    return RGB if channels == RGB.channels else PixelSpec(channels=channels, meaning="unknown")
