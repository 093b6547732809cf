"""WebDataset tars, read at offsets so that any sample can be had at any time."""

from __future__ import annotations

import glob
import json
import re
import tarfile
from pathlib import Path

import numpy as np

from ldm_ae.data.decoding import BadImage
from ldm_ae.data.sources.base import IMAGE_EXTENSIONS, RawImage, Source, StringTable, printable
from ldm_ae.errors import UserError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_PARTS = ("image", "cls", "json", "txt")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class WebDatasetSource(Source):
    """Samples of uncompressed tars: members of one tar that share the name up to the first dot of its last part.

    The image is the member with an image's extension, the label the number in `.cls`, the caption the text of `.txt`,
    or else "caption" in `.json`. The tars are scanned once, headers only; after that every sample is a read at an
    offset, so that, unlike a stream of tars, the order is free and a run can resume anywhere. The key is the tar's
    path below the folder that holds all the tars, a slash, and the sample's name.
    """

    name = "webdataset"
    accepts = "a .tar, a folder of them or a pattern like shards/{000..009}.tar"

    def __init__(self, tars: list[Path]) -> None:
        """Args: tars in their final order, at least one.

        Raises:
            UserError: a tar is compressed, damaged or missing, two samples share a name, or there are no images.
        """
        folders = {tar.parent for tar in tars}
        root = tars[0].parent if len(folders) == 1 else _common_folder(tars)
        self._tars = tars
        names: list[str] = []
        places: list[list[tuple[int, int]]] = []
        self._tar_of: list[int] | np.ndarray = []
        for number, tar in enumerate(tars):
            for sample, parts in sorted(_scan(tar).items(), key=lambda item: item[1]["image"][0]):
                names.append(f"{tar.relative_to(root).as_posix()}/{sample}")
                places.append([parts.get(part, (0, -1)) for part in _PARTS])
                self._tar_of.append(number)
        if not names:
            raise UserError(f"no images in {tars[0]}" + (f" and {len(tars) - 1} more tars" if tars[1:] else ""))
        self._keys = StringTable(names)
        self._tar_of = np.asarray(self._tar_of, np.int32)
        self._places = np.asarray(places, np.int64)  # (samples, parts, 2): offset and size, size -1 if there is none

    @classmethod
    def open(cls, location: str) -> WebDatasetSource | None:
        """See `Source.open`."""
        path = Path(location)
        if path.is_dir():
            tars = sorted(path.glob("*.tar"))
            return cls(tars) if tars else None
        if path.name.endswith(_COMPRESSED):
            raise UserError(
                f"{location} is compressed, so that samples cannot be read out of order; unpack it to a .tar"
            )
        if path.suffix != ".tar":
            return None
        if path.exists():
            return cls([path])
        if not _RANGE.search(location) and not glob.has_magic(location):
            raise UserError(f"no such tar: {location}")
        return cls(_expand(location))

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Tar and sample name."""
        return printable(self._keys[index])

    def __getitem__(self, index: int) -> RawImage:
        parts: dict[str, bytes] = {}
        with self._tars[self._tar_of[index]].open("rb") as file:
            for part, (offset, size) in zip(_PARTS, self._places[index].tolist(), strict=True):
                if size >= 0:
                    file.seek(offset)
                    parts[part] = file.read(size)
        return RawImage(self.key(index), parts["image"], _label(parts), _caption(parts))


def _label(parts: dict[str, bytes]) -> int | None:
    if "cls" not in parts:
        return None
    text = parts["cls"].decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise BadImage(f"its .cls holds {text[:40]!r}, not a class number")
    return int(text)


def _caption(parts: dict[str, bytes]) -> str | None:
    try:
        if "txt" in parts:
            return parts["txt"].decode("utf-8").strip()
        if "json" in parts:
            content = json.loads(parts["json"])
            caption = content.get("caption") if isinstance(content, dict) else None
            return caption if isinstance(caption, str) else None
    except ValueError as error:  # JSON's and UTF-8's decoding errors are ValueErrors
        raise BadImage(f"its caption cannot be read: {error}") from error
    return None


def _scan(tar: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Offset and size of each part of each sample that has an image."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        if tar.exists() and not tar.is_file():  # opening a named pipe would wait for ever
            raise UserError(f"{tar} is not a regular file")
        with tar.open("rb") as file:
            start = file.read(2)
        if start in _MAGIC:
            raise UserError(
                f"{tar} is compressed with {_MAGIC[start]}, so that samples cannot be read out of order; unpack it"
            )
        if tar.stat().st_size % tarfile.BLOCKSIZE:  # tarfile takes a header that is cut short for the end
            raise UserError(f"{tar} is not a sound tar file: cut short, its size is no multiple of 512 bytes")
        with tarfile.open(tar, "r:", errors="surrogateescape") as archive:
            for member in archive:
                folder, slash, file_name = member.name.rpartition("/")
                stem, _, ending = file_name.partition(".")
                part = "image" if ending.lower() in IMAGE_EXTENSIONS else ending.lower()
                if not member.isreg() or not stem or part not in _PARTS:
                    continue
                parts = samples.setdefault(f"{folder}{slash}{stem}", {})
                if part in parts:
                    raise UserError(f"{tar}: two members are the {part} of the sample {folder}{slash}{stem}")
                parts[part] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise UserError(f"{tar} is not a sound tar file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error.strerror}") from error
    return {name: parts for name, parts in samples.items() if "image" in parts}


def _expand(pattern: str) -> list[Path]:
    """The tars of a pattern with number ranges and shell wildcards; each part of it must match something."""
    patterns = [pattern]
    while match := _RANGE.search(patterns[0]):
        first, last = match.groups()
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        patterns = [p.replace(match.group(), number, 1) for p in patterns for number in numbers]
        if not patterns:
            raise UserError(f"{match.group()} in {pattern} is an empty range")
    tars: list[Path] = []
    for one in patterns:
        found = sorted(glob.glob(one))
        if not found:
            raise UserError(f"no such tar: {one}" + (f" (of {pattern})" if one != pattern else ""))
        tars += [Path(name) for name in found]
    return tars


def _common_folder(tars: list[Path]) -> Path:
    common = tars[0].parent
    while not all(tar.is_relative_to(common) for tar in tars):
        common = common.parent
    return common
