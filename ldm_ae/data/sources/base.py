"""What every source of images is: a list of encoded images, read by index."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple, overload

import numpy as np

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


class Source(abc.ABC):
    """A map-style, picklable list of images. A subclass in a file of this folder is found by `open_source`.

    Order and keys depend on the data alone, so that an index means the same image in every process and in every run.
    """

    name: ClassVar[str]
    """Short name of the kind, for messages and for the contract test."""
    accepts: ClassVar[str]
    """What a location of this kind looks like, for error messages."""

    @classmethod
    @abc.abstractmethod
    def open(cls, location: str) -> Source | None:
        """The source at `location`, or None if that is no location of this kind.

        Raises:
            UserError: it is one of this kind, and cannot be read.
        """

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


class Wrapped(Source):
    """Another source's images, with something done to each; made from that source, never from a location."""

    accepts = "another source"

    def __init__(self, source: Source):
        self._source = source

    @classmethod
    def open(cls, location: str) -> Source | None:  # noqa: ARG003
        """None."""
        return None

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """The source's."""
        return self._source.key(index)


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


def printable(name: str) -> str:
    """`name` as valid text: bytes of a file name that are not UTF-8 become backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def extension(name: str) -> str:
    """Lower-case extension of a file name without the dot, "" if there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""
