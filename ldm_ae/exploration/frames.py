"""Rows of images over one variable, which a slider moves through, and a pad of images over two variables.

`explore.js` adds the slider; without script the rows are complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from torch import Tensor

from ldm_ae.evaluation.report.page import data_uri
from ldm_ae.evaluation.report.pictures import image_grid
from ldm_ae.images.in_memory import levels_image

SMALL = 2**13
"""Number of pixels up to which images of rows are PNG; WebP above."""
PAD_PIXELS = 2**16


class Row(NamedTuple):
    """Images of one row."""

    name: str
    images: Tensor
    """(T, 3, H, W) uint8."""
    note: str = ""


def frames(rows: Sequence[Row], positions: Sequence[str], *, start: int, label: str) -> str:
    """Return rows of images.

    Args:
        rows: Rows of T images each.
        positions: T values of the variable, in words.
        start: Place that is shown first.
        label: Name of the variable.
    """
    parts = []
    for row in rows:
        images = "".join(
            _image(image, f"{row.name}, {label} {position}")
            for image, position in zip(row.images, positions, strict=True)
        )
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        parts.append(f'<div class="run"><b>{escape(row.name)}{note}</b><div class="steps">{images}</div></div>')
    return (
        f'<figure class="frames" data-start="{start}" data-label="{escape(label)}" '
        f'data-positions="{escape(json.dumps(list(positions)))}">{"".join(parts)}</figure>'
    )


def pad(images: Tensor, side: int, *, across: str, up: str, reach: float) -> str:
    """Return a square of images over two variables; pointing at one of them enlarges it.

    Args:
        images: (side^2, 3, H, W) uint8, in rows from the top, which is the highest value of `up`.
        side: Images in a row.
        across: Name of the variable from left to right.
        up: Name of the variable from bottom to top.
        reach: Standard deviations of both at the ends.
    """
    sheet = levels_image(image_grid(images, gap=0))
    text = f"images over {across} and {up}"
    return (
        f'<figure class="pad" data-side="{side}" data-across="{escape(across)}" data-up="{escape(up)}" '
        f'data-reach="{reach:g}">'
        f'<div class="sheet"><img src="{data_uri(sheet, largest_png=PAD_PIXELS)}" alt="{escape(text)}" '
        f'width="{sheet.width}" height="{sheet.height}"></div>'
        f"<figcaption>→ {escape(across)}, ↑ {escape(up)}, both from −{reach:g} to +{reach:g} standard "
        "deviations</figcaption></figure>"
    )


def _image(levels: Tensor, text: str) -> str:
    picture = levels_image(levels)
    return (
        f'<img src="{data_uri(picture, largest_png=SMALL)}" alt="{escape(text)}" width="{picture.width}" '
        f'height="{picture.height}">'
    )
