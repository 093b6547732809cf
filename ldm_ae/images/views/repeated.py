"""A grey image as an RGB image of three equal channels."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views.interface import View


class Repeated(View):
    """The one channel of an image, three times: the default of grey images."""

    short_names = ("grey", "gray")

    def check(self, pixels: PixelSpec) -> None:
        if pixels.channels != 1:
            raise UserError(f"the view Repeated needs images of one channel, got {pixels}; choose bands or triples")

    @property
    def words(self) -> str:
        return "the channel repeated"

    def rgb(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)
