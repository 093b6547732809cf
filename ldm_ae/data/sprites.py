"""White shapes on black, drawn from known factors, for questions about what latents mean.

The factors and their numbers of values are those of dSprites (Matthey et al., 2017, github.com/google-deepmind/
dsprites-dataset): every combination is one of 737,280 images of 64x64 pixels, black and white. The images are drawn
here by each shape's equation, so that they are not dSprites' own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm_ae.core.errors import UserError

SHAPES = ("square", "ellipse", "heart")
SIZE = 64
"""Side of the images in pixels."""


class Factors(NamedTuple):
    """The number of each factor's value, from 0."""

    shape: int
    """In `SHAPES`."""
    scale: int
    """0 is half as large as 5."""
    rotation: int
    """In fortieths of a turn, clockwise."""
    x: int
    """0 is the leftmost position, 31 the rightmost."""
    y: int
    """0 is the highest position, 31 the lowest."""


COUNTS = Factors(shape=3, scale=6, rotation=40, x=32, y=32)
"""Number of values of each factor."""
TOTAL = 3 * 6 * 40 * 32 * 32
"""Number of combinations."""


def factors(index: int) -> Factors:
    """Return the factors of sample `index`, from 0 to TOTAL - 1: every combination once, in a fixed random order.

    Raises:
        UserError: There is no such sample.
    """
    if not 0 <= index < TOTAL:
        raise UserError(f"sprites: expected a sample from 0 to {TOTAL - 1}, got {index}")
    return Factors(*(int(value) for value in np.unravel_index(_order()[index], COUNTS)))


def draw(values: Factors) -> NDArray[np.uint8]:
    """Draw an image (64, 64) of 0 and 255.

    Raises:
        UserError: A factor has no such value.
    """
    for name, value, count in zip(Factors._fields, values, COUNTS, strict=True):
        if not 0 <= value < count:
            raise UserError(f"sprites: expected {name} from 0 to {count - 1}, got {value}")
    radius = SIZE / 5.6 * (0.5 + values.scale / 10)  # at scale 5, no shape reaches beyond 11.5 pixels
    centers = (12.0 + (SIZE - 24.0) * np.array([values.x, values.y]) / 31).reshape(2, 1, 1)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    right, down = (np.stack([columns, rows]) - centers) / radius
    angle = 2 * np.pi * values.rotation / COUNTS.rotation
    u, v = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    return np.where(_inside(SHAPES[values.shape], u, v), 255, 0).astype(np.uint8)


def key(values: Factors) -> str:
    """Return a name that holds the factors, such as `heart-scale3-rotation07-x12-y31`."""
    return f"{SHAPES[values.shape]}-scale{values.scale}-rotation{values.rotation:02d}-x{values.x:02d}-y{values.y:02d}"


def factors_of_key(name: str) -> Factors:
    """Return the factors in a name that `key` returned, as stores of sprites have it.

    Raises:
        UserError: It is not such a name.
    """
    shape, *others = name.split("-")
    names = Factors._fields[1:]
    if shape not in SHAPES or len(others) != len(names) or not all(map(str.startswith, others, names)):
        raise UserError(f"expected the key of a sprite, such as {key(Factors(0, 0, 0, 0, 0))}, got {name!r}")
    numbers = [text.removeprefix(field) for text, field in zip(others, names, strict=True)]
    found = Factors(SHAPES.index(shape), *(int(number) if number.isdigit() else -1 for number in numbers))
    if any(not 0 <= value < count for value, count in zip(found, COUNTS, strict=True)):
        raise UserError(f"expected the key of a sprite, such as {key(Factors(0, 0, 0, 0, 0))}, got {name!r}")
    return found


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where points are inside a shape, which reaches about 1 from its center. v points down."""
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.7
    if shape == "ellipse":
        return u**2 + (v / 0.5) ** 2 <= 1
    u, v = 1.3 * u, 0.2 - 1.3 * v
    return (u**2 + v**2 - 1) ** 3 <= u**2 * v**3


@lru_cache(maxsize=1)
def _order() -> NDArray[np.int64]:
    """Return the permutation of all combinations; NumPy keeps the numbers of RandomState."""
    return np.random.RandomState(0).permutation(TOTAL)
