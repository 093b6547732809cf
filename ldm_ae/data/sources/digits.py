"""Handwritten digits of 8x8 pixels from the wheel of scikit-learn, for use without a network.

Source: the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998: 1,797 digits of 13 writers, each pixel from 0 to 16.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.core.resources import installed_folder
from ldm_ae.data.account import Account
from ldm_ae.data.sources.interface import RawImage, Source
from ldm_ae.data.sources.tree import Tree

_EVERY = 6
"""One of so many digits of each class is for testing."""
_SPLITS = ("train", "test")


class DigitsSource(Source):
    """The digits of one split, grey, white on black; the key is `digit-0123` by its number in the data set.

    Of the digits of each class, in the data set's order, every sixth is in `test`.
    """

    name = "digits"
    accepts = "digits:train or digits:test"

    def __init__(self, split: str) -> None:
        self.split = split
        _digits()

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> DigitsSource | None:  # noqa: ARG003
        """See `Source.open`."""
        scheme, colon, split = location.partition(":")
        if scheme != "digits" or not colon or Path(location).exists():  # a folder `digits` is the user's
            return None
        if split not in _SPLITS:
            raise UserError(f"there are no digits '{location}'; there are digits:train and digits:test")
        return cls(split)

    def labels_hold_mirrored(self) -> bool:
        """Return False: a mirrored digit is not a digit."""
        return False

    def account(self) -> Account:
        """See `Source.account`."""
        return Account(kind=self.name, images=len(self), labels={"the data set": len(self)})

    def __len__(self) -> int:
        return len(_rows(self.split))

    def key(self, index: int) -> str:
        """Return the digit's number in the data set."""
        return f"digit-{_rows(self.split)[index]:04d}"

    def __getitem__(self, index: int) -> RawImage:
        row = _digits()[_rows(self.split)[index]]
        levels = (row[:64].reshape(8, 8) * 255 + 8) // 16
        file = io.BytesIO()
        Image.fromarray(levels.astype(np.uint8)).save(file, "PNG")
        return RawImage(self.key(index), file.getvalue(), label=int(row[64]))


@lru_cache(maxsize=1)
def _digits() -> NDArray[np.int64]:
    """Return (1797, 65): 64 pixels and the class of each digit. UserError if scikit-learn is missing."""
    if (folder := installed_folder("sklearn")) is None:
        raise UserError("the digits need scikit-learn, which is missing; pip install 'ldm_ae[offline]'")
    path = folder / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise UserError(f"this installation has no {path}; pip install --force-reinstall 'ldm_ae[offline]'")
    return np.loadtxt(path, delimiter=",", dtype=np.int64)


@lru_cache(maxsize=2)
def _rows(split: str) -> NDArray[np.int64]:
    """Return the rows of a split, in the order of the data set."""
    labels = _digits()[:, 64]
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[_EVERY - 1 :: _EVERY]] = True
    return np.flatnonzero(is_test == (split == "test"))
