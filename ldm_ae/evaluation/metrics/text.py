"""Whether letters survive: text that is rendered, reconstructed and read again.

The text is drawn by Pillow with the font that it carries, one character in each cell of a grid, black on white. A cell
is read as the character whose own drawing it correlates with most (normalized cross-correlation, as in Lewis, Fast
Normalized Cross-Correlation, 1995, without a search of the position). The originals are read without an error.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, Metric, ScoreInfo, Scores, Setting
from ldm_ae.images.pixels import RGB
from ldm_ae.images.uint8 import from_levels, to_levels
from ldm_ae.models import Autoencoder, Posterior

SIZES = (8, 12, 16, 24, 32)
"""Sizes of the font in pixels."""
SIDE = 256
"""Side of the images in pixels, rounded up to a multiple of the model's."""
ALPHABET = string.ascii_letters + string.digits
TEXT = "Sphinx OF black QUARTZ judge MY vow 0123456789 sPHINX of BLACK quartz JUDGE my VOW 9876543210 "
"""The text that fills an image, line by line, from its start again where it ends. Spaces are not counted."""
UNREADABLE = "?"
"""What a cell of one colour is read as."""
_WHITE = 255


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """An image of text and what is needed to read it."""

    levels: Tensor
    """(H, W) float32 levels, 0 to 255."""
    lines: tuple[str, ...]
    """The text, one character for each cell."""
    templates: Tensor
    """Drawing of each character of `ALPHABET`, (62, h, w) float32 levels."""


def _key(size: int) -> str:
    return f"text_error_{size}"


class TextError(Metric):
    """Fraction of characters that are misread after reconstruction, at each size and as the mean over sizes.

    The images are the metric's own, one for each size: the scores depend on the model alone.
    """

    name = "text_error"
    label = "Misread text"
    direction = "lower"
    explanation = "Fraction of rendered characters that are misread after reconstruction, mean over font sizes."
    pixels = RGB
    compares_images = False
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "text_error": ScoreInfo(label=label, direction="lower", explanation=explanation),
        **{
            _key(size): ScoreInfo(
                label=f"Misread text, {size} px", direction="lower",
                explanation=f"Fraction of rendered characters of {size} pixels that are misread after reconstruction.",
            )
            for size in SIZES
        },
    }  # fmt: skip

    def __init__(self) -> None:
        self._model: Autoencoder | None = None
        self.reset()

    def prepare(self, setting: Setting) -> None:
        """Keep the model.

        Raises:
            CannotScoreError: There is no model.
        """
        if setting.model is None:
            raise CannotScoreError(f"{self.label} needs a model")
        self._model = setting.model

    def reset(self) -> None:
        """Discard what was read."""
        self._read: dict[int, tuple[str, ...]] = {}

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Do nothing: the images are the metric's own."""
        return {}

    def compute(self) -> Scores:
        """Reconstruct and read the images, and return the fractions.

        Raises:
            CannotScoreError: The model does not take images of this size.
        """
        assert self._model is not None
        found: dict[str, float] = {}
        for size in SIZES:
            written = sheet(size, image_side(self._model))
            self._read[size] = read(_reconstructed(self._model, written, self.label), written)
            found[_key(size)] = fraction_of_errors(written.lines, self._read[size])
        return {self.name: sum(found.values()) / len(found), **found}

    def details(self) -> Mapping[str, JSON]:
        """Return the lines that were written and read, by size."""
        assert self._model is not None
        side = image_side(self._model)
        return {
            str(size): {"written": [*sheet(size, side).lines], "read": [*lines]} for size, lines in self._read.items()
        }

    def protocol(self) -> dict[str, object]:
        """Return what was rendered and how it was read."""
        assert self._model is not None
        side = image_side(self._model)
        return {
            "text": {
                "images": f"{len(SIZES)} of {side}x{side} pixels, black on white, a cell for each character",
                "font": f"the default font of Pillow {PIL.__version__}",
                "reading": "normalized cross-correlation of each cell with the drawing of each letter and digit",
            }
        }


def image_side(model: Autoencoder) -> int:
    """Return the side of the images for a model, in pixels."""
    multiple = model.latent_spec.image_multiple
    return -(-SIDE // multiple) * multiple


@lru_cache(maxsize=2 * len(SIZES))
def sheet(size: int, side: int) -> Sheet:
    """Return the image of text at a size of the font, side x side pixels."""
    font = ImageFont.load_default(size)
    boxes = [font.getbbox(character, anchor="ms") for character in ALPHABET]
    left, top = (-int(np.floor(min(box[i] for box in boxes))) for i in (0, 1))
    right, bottom = (int(np.ceil(max(box[i] for box in boxes))) for i in (2, 3))
    width, height = left + right + 1, top + bottom + 1  # a pixel between characters

    def drawing(character: str) -> Tensor:
        image = Image.new("L", (width, height), _WHITE)
        ImageDraw.Draw(image).text((left, top), character, fill=0, font=font, anchor="ms")
        return torch.from_numpy(np.array(image)).float()

    templates = torch.stack([drawing(character) for character in ALPHABET])
    columns, rows = side // width, side // height
    text = TEXT * (rows * columns // len(TEXT) + 1)
    lines = tuple(text[row * columns : (row + 1) * columns] for row in range(rows))
    levels = torch.full((side, side), float(_WHITE))
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            if character != " ":
                cell = levels[row * height : (row + 1) * height, column * width : (column + 1) * width]
                cell.copy_(templates[ALPHABET.index(character)])
    return Sheet(levels=levels, lines=lines, templates=templates)


def read(levels: Tensor, written: Sheet) -> tuple[str, ...]:
    """Return the lines of an image (H, W) of the same layout as `written`, whose spaces are taken from there."""
    height, width = written.templates.shape[1:]
    rows, columns = len(written.lines), len(written.lines[0])
    cells = levels[: rows * height, : columns * width].unflatten(1, (columns, width)).unflatten(0, (rows, height))
    patterns = _normalized(cells.permute(0, 2, 1, 3).flatten(2))
    best = (patterns @ _normalized(written.templates.flatten(1)).T).argmax(dim=-1)
    readable = patterns.any(dim=-1)
    return tuple(
        "".join(
            " " if character == " " else ALPHABET[int(best[row, column])] if readable[row, column] else UNREADABLE
            for column, character in enumerate(line)
        )
        for row, line in enumerate(written.lines)
    )


def fraction_of_errors(written: Sequence[str], found: Sequence[str]) -> float:
    """Return the fraction of the characters that differ, without spaces."""
    pairs = [pair for pair in zip("".join(written), "".join(found), strict=True) if pair[0] != " "]
    return sum(character != other for character, other in pairs) / len(pairs)


@torch.no_grad()
def _reconstructed(model: Autoencoder, written: Sheet, label: str) -> Tensor:
    """Return the reconstruction's mean over colours, (H, W) float32 levels on the CPU."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    pixel_values = from_levels(written.levels).expand(1, 3, -1, -1).to(device)
    try:
        decoded = model.decode(model.encode(pixel_values).mode())
    except UserError as error:
        raise CannotScoreError(f"{label} reconstructs images of {pixel_values.shape[-1]} pixels: {error}") from None
    return to_levels(decoded)[0].mean(dim=0).cpu()


def _normalized(patterns: Tensor) -> Tensor:
    """Return patterns (..., D) in float64 with mean 0 and norm 1; 0 for a pattern of one level, or without numbers."""
    centred = patterns.double() - patterns.double().mean(dim=-1, keepdim=True)
    norms = centred.norm(dim=-1, keepdim=True)
    return torch.where(norms > 1e-6 * _WHITE, centred / norms, 0.0)
