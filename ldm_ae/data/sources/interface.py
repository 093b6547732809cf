"""What every source of images is: a list of encoded images, read by index."""

from __future__ import annotations

import abc
import copy
import errno
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, overload

import numpy as np

from ldm_ae.core.errors import UserError
from ldm_ae.data.account import Account
from ldm_ae.images.decoding import BadImage

if TYPE_CHECKING:
    from ldm_ae.data.sources.tree import Tree

IMAGE_EXTENSIONS = (
    "avif", "bmp", "gif", "heic", "heif", "hif", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx",
    "jxl", "mpo", "png", "tif", "tiff", "webp",
)  # fmt: skip
"""Lower case, without the dot. What a file really is, its content says; these only choose which files are looked at."""


class RawImage(NamedTuple):
    """One image as it lies in the source, not decoded."""

    key: str
    """Stable and unique within the source."""
    data: bytes
    """The encoded file."""
    label: int | None = None
    """Class, from 0."""
    caption: str | None = None
    """Text that belongs to the image."""
    notes: tuple[str, ...] = ()
    """Why a caption or label that is there is not used; the image itself is."""


class Source(abc.ABC):
    """A map-style, picklable list of images. A subclass in a file of this folder is found by `open_source`.

    Order and keys depend on the data alone, so that an index means the same image in every process and in every run.
    """

    name: ClassVar[str]
    """Short name of the kind, for messages and for the contract test."""
    accepts: ClassVar[str]
    """What a location of this kind looks like, for error messages."""
    scheme: ClassVar[str] = ""
    """`SCHEME:PATH` reads a path as this kind where it could be several; "" if only this kind reads such locations."""

    @classmethod
    @abc.abstractmethod
    def open(cls, location: str, tree: Tree | None = None) -> Source | None:
        """The source at `location`, or None if that is no location of this kind.

        Args:
            location: As the user names it, without a scheme.
            tree: What lies in `location`, if that is a folder and somebody has walked it already.

        Raises:
            UserError: it is one of this kind, and cannot be read.
        """

    def account(self) -> Account:
        """What it takes and passes over, and where captions and labels come from."""
        return Account(kind=self.name, images=len(self))

    def bytes_of(self, index: int) -> int | None:
        """How large an encoded image is, where that is known without reading it."""
        del index
        return None

    def with_classes(self, classes: Sequence[str], origin: str) -> Source:
        """The same images, whose class names have the numbers that they have in `classes`.

        Raises:
            UserError: labels have no names here, or some are not in `classes`, which are those of `origin`.
        """
        del classes
        raise UserError(f"the labels of a source of the kind {self.name} have no names, so that {origin} has no effect")

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """Stable, unique, printable name of image `index`; cheap, reads no image."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> RawImage:
        """Image `index`, 0 <= index < len.

        Raises:
            BadImage: what lies there is unusable for a reason other than its pixels, e.g. a label that is no number.
            OSError: it can no longer be read.
        """


class ColumnSource(Source):
    """Rows of a table, whose labels are numbers of classes that the table may name. Not a kind of its own."""

    classes: list[str]
    """Names of the classes 0, 1, ... of the table; empty where it names none."""
    _account: Account
    _numbers: list[int] | None = None
    """Which number each class has instead, after `with_classes`."""

    def account(self) -> Account:
        """See `Source.account`."""
        return copy.deepcopy(self._account)

    def with_classes(self, classes: Sequence[str], origin: str) -> Source:
        """See `Source.with_classes`."""
        if not self.classes:
            return super().with_classes(classes, origin)
        found = copy.copy(self)
        found._numbers = numbered(self.classes, classes, origin)
        found._account = self.account()
        found._account.classes = list(classes)
        return found

    def _numbered(self, label: int | None) -> int | None:
        """The number that a row's label stands for; BadImage for a class without a name."""
        if label is None or self._numbers is None:
            return label
        if label >= len(self._numbers):
            raise BadImage(f"its label {label} has no name; there are {len(self._numbers)}")
        return self._numbers[label]


class Wrapped(Source):
    """Another source's images, with something done to each; made from that source, never from a location."""

    accepts = "another source"

    def __init__(self, source: Source):
        self._source = source

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> Source | None:  # noqa: ARG003
        """None."""
        return None

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """The source's."""
        return self._source.key(index)

    def account(self) -> Account:
        """The source's."""
        return self._source.account()

    def with_classes(self, classes: Sequence[str], origin: str) -> Source:
        """See `Source.with_classes`."""
        found = copy.copy(self)
        found._source = self._source.with_classes(classes, origin)
        return found


class StringTable(Sequence[str]):
    """A read-only list of strings in two flat buffers.

    A Python list of a million paths is touched (reference counts) and thus copied by every forked worker, and costs
    three times the memory; this is neither.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].decode("utf-8", "surrogateescape")


def numbered(names: Sequence[str], classes: Sequence[str], origin: str) -> list[int]:
    """The number in `classes`, those of `origin`, of each of these names; UserError for one that is not there."""
    numbers = {name: number for number, name in enumerate(classes)}
    if missing := [name for name in names if name not in numbers]:
        raise UserError(
            f"{origin} has no class {', '.join(missing[:3])}; add {'it' if len(missing) == 1 else 'them'} at its end, "
            "so that the other classes keep their numbers"
        )
    return [numbers[name] for name in names]


def read_regular(path: str | Path) -> bytes:
    """The content of a regular file. A pipe or a device of that name would wait for a writer, or never end.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def valid_text(name: str) -> str:
    """`name` as valid text: bytes of a file name that are not UTF-8 become backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def extension(name: str) -> str:
    """Lower-case extension of a file name without the dot, "" if there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""
