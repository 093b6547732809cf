"""Images of shapes that are drawn from known factors: `ldm_ae.data.sprites`."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import sprites
from ldm_ae.data.account import Account
from ldm_ae.data.sources.interface import RawImage, Source
from ldm_ae.data.sources.tree import Tree


class SpritesSource(Source):
    """Samples of the sprites' fixed random order, so that `sprites:8000` and `sprites:8000-10000` share no image.

    The label is the shape. The key and the caption hold all factors: `ldm_ae.data.sprites.factors_of_key` reads them.
    """

    name = "sprites"
    accepts = "sprites:N or sprites:FIRST-END"

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> SpritesSource | None:  # noqa: ARG003
        """See `Source.open`."""
        scheme, colon, part = location.partition(":")
        if scheme != "sprites" or not colon or Path(location).exists():  # a folder `sprites` is the user's
            return None
        found = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})", part)
        first, end = (int(found[1] or 0), int(found[2])) if found else (0, 0)
        if not first < end <= sprites.TOTAL:
            raise UserError(
                f"there are no sprites '{location}'; there are sprites:N, the first N of {sprites.TOTAL}, and "
                "sprites:FIRST-END, those from FIRST to END - 1"
            )
        return cls(first, end)

    def factors(self, index: int) -> sprites.Factors:
        """Return the factors of image `index`."""
        return sprites.factors(self.first + index)

    def labels_hold_mirrored(self) -> bool:
        """Return False: the caption has the rotation and the place."""
        return False

    def account(self) -> Account:
        """See `Source.account`."""
        return Account(
            kind=self.name, images=len(self), labels={"the shape": len(self)}, captions={"the factors": len(self)},
            classes=list(sprites.SHAPES),
        )  # fmt: skip

    def __len__(self) -> int:
        return self.end - self.first

    def key(self, index: int) -> str:
        """Return the name with the factors."""
        return sprites.key(self.factors(index))

    def __getitem__(self, index: int) -> RawImage:
        values, file = self.factors(index), io.BytesIO()
        Image.fromarray(sprites.draw(values)).save(file, "PNG")
        caption = " ".join(f"{name} {value}" for name, value in values._asdict().items() if name != "shape")
        return RawImage(
            self.key(index), file.getvalue(), label=values.shape, caption=f"{sprites.SHAPES[values.shape]} {caption}"
        )
