"""Three channels of an image as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views.interface import View

COLOURS = ("red", "green", "blue")


class Bands(View):
    """Three channels, chosen by name: the default of images whose channels include red, green and blue.

    Args:
        bands: Names of the channels that are shown as red, green and blue.
    """

    short_names = ("bands",)

    def __init__(self, *, bands: Sequence[str] = COLOURS):
        if len(bands) != len(COLOURS):
            raise UserError(f"Bands: expected the names of 3 channels, got {len(bands)}: {', '.join(bands)}")
        self.bands = tuple(bands)
        self._chosen: list[int] = []

    def check(self, pixels: PixelSpec) -> None:
        for name in self.bands:
            if name not in pixels.names:
                raise UserError(
                    f"the view Bands needs a channel '{name}', but the images' channels are {', '.join(pixels.names)}"
                )
        self._chosen = [pixels.names.index(name) for name in self.bands]

    @property
    def words(self) -> str:
        return f"channels {', '.join(self.bands)} as red, green, blue"

    def rgb(self, images: Tensor) -> Tensor:
        return images[:, self._chosen]
