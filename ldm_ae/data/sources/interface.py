"""The interface of every image source: a list of encoded images, read by index."""

from __future__ import annotations

import abc
import copy
import errno
import io
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple, overload

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
"""Extensions in lower case, without the dot, that select files to inspect. The content determines the format."""


ARRAY_EXTENSIONS = ("npy", "npz")
"""Extensions of arrays, which are the images of a folder without images, tars and tables of Parquet."""
VOLUME_EXTENSIONS = ("dcm", "dicom", "nii", "nii.gz")
"""Extensions of DICOM and NIfTI files, of which each slice is an image."""


class RawImage(NamedTuple):
    """One image as stored in the source, not decoded."""

    key: str
    """Name that is stable and unique within the source."""
    data: bytes
    """Content of the encoded file."""
    label: int | None = None
    """Class number, from 0."""
    caption: str | None = None
    """Text that belongs to the image."""
    notes: tuple[str, ...] = ()
    """Reasons why an existing caption or label is not used, although the image is."""


class Source(abc.ABC):
    """A map-style, picklable list of images. `open_source` finds a subclass in a file of this folder.

    Order and keys depend on the data alone, so that an index means the same image in every process and in every run.
    """

    name: ClassVar[str]
    """Short name of the kind, for messages and for the contract test."""
    accepts: ClassVar[str]
    """Description of locations of this kind, for error messages."""
    scheme: ClassVar[str] = ""
    """`SCHEME:PATH` reads an ambiguous path as this kind; "" if only this kind reads such locations."""

    @classmethod
    @abc.abstractmethod
    def open(cls, location: str, tree: Tree | None = None) -> Source | None:
        """Return the source at `location`, or None if it is not a location of this kind.

        Args:
            location: The user's location, without a scheme.
            tree: Contents of `location`, if it is a folder that has already been walked.

        Raises:
            UserError: The location is of this kind, and cannot be read.
        """

    def account(self) -> Account:
        """Return what the source uses and skips, and where captions and labels come from."""
        return Account(kind=self.name, images=len(self))

    def bytes_of(self, index: int) -> int | None:
        """Return the size of an encoded image, or None if it is unknown without reading the image."""
        del index
        return None

    def labels_hold_mirrored(self) -> bool:
        """Return whether the mirror image of an image has the same label and caption; a mirrored 2 is not a 2."""
        return True

    def open_image(self, index: int) -> BinaryIO:
        """Open the encoded file of image `index`, for readers that need its header alone; errors as `__getitem__`."""
        return io.BytesIO(self[index].data)

    def with_classes(self, classes: Sequence[str], origin: str) -> Source:
        """Return the same images, with class names numbered as in `classes`.

        Raises:
            UserError: Labels have no names here, or some are not in `classes`, which are those of `origin`.
        """
        del classes
        raise UserError(f"the labels of a source of the kind {self.name} have no names, so {origin} has no effect")

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """Return the stable, unique, printable name of image `index`; this is cheap and reads no image."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> RawImage:
        """Return image `index`, 0 <= index < len.

        Raises:
            BadImage: The image is unusable for a reason other than its pixels, e.g. a label that is not a number.
            OSError: The image can no longer be read.
        """


class ColumnSource(Source):
    """Rows of a table, whose labels are numbers of classes that the table may name. It is not a kind of its own."""

    classes: list[str]
    """Names of the classes 0, 1, ... of the table; empty if it names none."""
    _account: Account
    _numbers: list[int] | None = None
    """New number of each class, after `with_classes`."""

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
        """Return the number that a row's label represents; BadImage for a class without a name."""
        if label is None or self._numbers is None:
            return label
        if label >= len(self._numbers):
            raise BadImage(f"its label {label} has no name; there are {len(self._numbers)}")
        return self._numbers[label]


class Wrapped(Source):
    """Another source's images, each modified; built from that source, never from a location."""

    accepts = "another source"

    def __init__(self, source: Source):
        self._source = source

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> Source | None:  # noqa: ARG003
        """Return None."""
        return None

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """Return the source's key."""
        return self._source.key(index)

    def account(self) -> Account:
        """Return the source's account."""
        return self._source.account()

    def labels_hold_mirrored(self) -> bool:
        """See `Source.labels_hold_mirrored`."""
        return self._source.labels_hold_mirrored()

    def open_image(self, index: int) -> BinaryIO:
        """See `Source.open_image`."""
        return self._source.open_image(index)

    def with_classes(self, classes: Sequence[str], origin: str) -> Source:
        """See `Source.with_classes`."""
        found = copy.copy(self)
        found._source = self._source.with_classes(classes, origin)
        return found


class StringTable(Sequence[str]):
    """A read-only list of strings in two flat buffers.

    Reference counts in a Python list of a million paths make every forked worker copy it, and it takes three times
    the memory; this table avoids both.
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
    """Return the number of each of these names in `classes`, those of `origin`; UserError for one that is missing."""
    numbers = {name: number for number, name in enumerate(classes)}
    if missing := [name for name in names if name not in numbers]:
        raise UserError(
            f"{origin} has no class {', '.join(missing[:3])}; add {'it' if len(missing) == 1 else 'them'} at its end, "
            "so that the other classes keep their numbers"
        )
    return [numbers[name] for name in names]


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read it. Opening a pipe or a device would wait for a writer, or never end.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = open(descriptor, "rb")  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: str | Path) -> bytes:
    """Return the content of a regular file; errors as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def valid_text(name: str) -> str:
    """Return `name` as valid text: bytes of a file name that are not UTF-8 become backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def extension(name: str) -> str:
    """Return the lower-case extension of a file name without the dot, "" if there is none; `nii.gz` is one."""
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    return "nii.gz" if ending == "gz" and name.lower().endswith(".nii.gz") else ending
