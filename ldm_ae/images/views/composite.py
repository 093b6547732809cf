"""An image with alpha over backgrounds.

Source: Porter and Duff, Compositing Digital Images, SIGGRAPH 1984, the operator `over` on an opaque background; as
scores over several backgrounds: Wang et al., AlphaVAE: Unified End-to-End RGBA Image Reconstruction and Generation with
Alpha-Aware Representation Learning, arXiv 2507.09308, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views.interface import View

Background = Literal["black", "white", "checker"]
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
SQUARE = 8
"""Side of a square of the checker, in pixels."""
_DARK, _LIGHT = 102 / 127.5 - 1, 153 / 127.5 - 1
"""Greys of the checker, those of GIMP's mid-tone checks."""


def background(name: Background, like: Tensor) -> Tensor:
    """Return a background, (1, H, W) in [-1, 1], for images (B, C, H, W); the first square of the checker is light."""
    height, width = like.shape[-2:]
    if name != "checker":
        return like.new_full((1, height, width), 1.0 if name == "white" else -1.0)
    rows, columns = (torch.arange(side, device=like.device) // SQUARE for side in (height, width))
    dark = (rows[:, None] + columns) % 2
    return (_LIGHT + dark * (_DARK - _LIGHT)).to(like)[None]


def over(images: Tensor, behind: Tensor) -> Tensor:
    """Return colours over a background: a c + (1 - a) b with the opacity a = (alpha + 1) / 2.

    Args:
        images: (B, 4, H, W) in [-1, 1]: colours, not multiplied by alpha, and alpha; -1 is transparent.
        behind: The background, in [-1, 1], (1, H, W) or (B, 1, H, W).
    """
    colours, opacity = images[:, :3], (images[:, 3:] + 1) / 2
    return torch.lerp(behind.expand_as(colours), colours, opacity.expand_as(colours))


def opaque(images: Tensor, name: Background) -> Tensor:
    """Return images (B, 4, H, W) over one of the backgrounds, (B, 3, H, W)."""
    return over(images, background(name, images))


class Composite(View):
    """Colours over backgrounds: the default of rgba images.

    Scores and distances are means over all backgrounds. In training each image has one of them, drawn for the sample,
    which is the same for the image and its reconstruction.

    Args:
        backgrounds: Among black, white and checker (grey squares of 8 pixels).
    """

    short_names = ("rgba",)

    def __init__(self, *, backgrounds: Sequence[Background] = BACKGROUNDS):
        if not backgrounds or any(name not in BACKGROUNDS for name in backgrounds):
            raise UserError(f"Composite: expected backgrounds among {', '.join(BACKGROUNDS)}, got {list(backgrounds)}")
        self.backgrounds = tuple(backgrounds)

    def check(self, pixels: PixelSpec) -> None:
        if pixels.meaning != "rgba":
            raise UserError(f"the view Composite needs rgba images, got {pixels}; choose bands or triples")

    @property
    def count(self) -> int:
        return len(self.backgrounds)

    @property
    def words(self) -> str:
        return f"composited over {', '.join(self.backgrounds)}"

    def __call__(self, *images: Tensor, draws: Draws | None = None) -> tuple[Tensor, ...]:
        if draws is None:
            return super().__call__(*images)
        behind = torch.stack([background(name, images[0]) for name in self.backgrounds])
        chosen = behind[draws.integers(0, len(self.backgrounds)).to(behind.device)]
        return tuple(over(each, chosen) for each in images)

    def rgb(self, images: Tensor) -> Tensor:
        return torch.stack([opaque(images, name) for name in self.backgrounds], dim=1).flatten(0, 1)
