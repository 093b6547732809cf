"""WebDataset tars, read at offsets so that samples can be read in any order."""

from __future__ import annotations

import copy
import glob
import re
import tarfile
from functools import partial
from pathlib import Path

import numpy as np

from ldm_ae.core.errors import UserError
from ldm_ae.data.account import Account
from ldm_ae.data.sources.interface import (
    ARRAY_EXTENSIONS,
    IMAGE_EXTENSIONS,
    VOLUME_EXTENSIONS,
    RawImage,
    Source,
    StringTable,
    extension,
    valid_text,
)
from ldm_ae.data.sources.tree import IMAGE_LIKE, TEXTS, Tree
from ldm_ae.data.texts import LABEL_LIMIT, Annotations
from ldm_ae.images.decoding import BadImage

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_PARTS = ("image", "cls", "json", "txt", "caption")
_KINDS = dict.fromkeys(IMAGE_EXTENSIONS, "image") | dict.fromkeys((*ARRAY_EXTENSIONS, *VOLUME_EXTENSIONS), "array")
"""Kinds of images by the extension of the member. Arrays are images of tars without others, else features."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class WebDatasetSource(Source):
    """Samples of uncompressed tars: members of one tar that share the name up to the first dot of its last part.

    The image is the member with an image's extension, or, if no sample of the tars has one, the array (`.npy`, `.npz`)
    or the file of DICOM or NIfTI with one slice. The label is the number in `.cls`, the caption the text of `.txt` or
    `.caption`; an object in `.json` may have a caption and a label too. A hard link has the content of its target. The
    tars are scanned once, headers only; after that every sample is a read at an offset, so that, unlike in a stream of
    tars, the order is free and a run can resume anywhere. The key is the tar's path below the folder that holds all the
    tars, a slash, and the sample's name.
    """

    name = "webdataset"
    accepts = "a .tar, a folder of them or a pattern like shards/{000..009}.tar"
    scheme = "tars"

    def __init__(self, tars: list[Path], tree: Tree | None = None) -> None:
        """Scan the headers of the tars.

        Args:
            tars: The tars in their final order, at least one.
            tree: The other contents of their folder.

        Raises:
            UserError: A tar is compressed, damaged or missing, two samples share a name, or there are no images.
        """
        folders = {tar.parent for tar in tars}
        root = tars[0].parent if len(folders) == 1 else _common_folder(tars)
        self._tars = tars
        self._tar_of: list[int] | np.ndarray = []
        for image in ("image", "array"):
            names: list[str] = []
            places: list[list[tuple[int, int]]] = []
            account = Account(kind=self.name, images=0)
            for number, tar in enumerate(tars):
                place = tar.relative_to(root).as_posix()
                samples = _scan(tar, place, image, account)
                for sample, parts in sorted(samples.items(), key=lambda item: item[1]["image"][0]):
                    names.append(f"{place}/{sample}")
                    places.append([parts.get(part, (0, -1)) for part in _PARTS])
                    self._tar_of.append(number)
            if names:
                break
        if not names:
            more = f" and {len(tars) - 1} more tars" if tars[1:] else ""
            found = "".join(f"; {group.count} {reason}: {group}" for reason, group in account.passed_over.items())
            raise UserError(f"no images in {tars[0]}{more}{found}")
        self._keys = StringTable(names)
        self._tar_of = np.asarray(self._tar_of, np.int32)
        self._places = np.asarray(places, np.int64)  # (samples, parts, 2): offset and size, size -1 if there is none
        self._account = self._describe(account, tree)

    def _describe(self, account: Account, tree: Tree | None) -> Account:
        account.images = len(self)
        for part, where in (
            ("cls", account.labels),
            ("json", account.labels),
            *((text, account.captions) for text in TEXTS),
        ):
            if count := int((self._places[:, _PARTS.index(part), 1] >= 0).sum()):
                where[f".{part} of the sample"] = count
        if tree is not None:
            tree.describe(account, used=("tar",))
        return account

    def account(self) -> Account:
        """See `Source.account`."""
        return copy.deepcopy(self._account)

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> WebDatasetSource | None:
        """See `Source.open`."""
        path = Path(location)
        if path.is_dir():
            tree = tree or Tree(path)
            tars = [path / name for name in tree.files("tar")]
            return cls(tars, tree) if tars else None
        if path.name.endswith(_COMPRESSED):
            raise UserError(
                f"{location} is compressed, so its samples cannot be read out of order; unpack it to a .tar"
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
        """Return tar and sample name."""
        return valid_text(self._keys[index])

    def __getitem__(self, index: int) -> RawImage:
        parts: dict[str, bytes] = {}
        with self._tars[self._tar_of[index]].open("rb") as file:
            for part, (offset, size) in zip(_PARTS, self._places[index].tolist(), strict=True):
                if size >= 0:
                    file.seek(offset)
                    parts[part] = file.read(size)
        found = Annotations(_label(parts))
        for part in reversed(TEXTS):
            if part in parts:
                add = found.add_object if part == "json" else found.add_text
                add(f".{part}", partial(parts.__getitem__, part))
        return RawImage(self.key(index), parts["image"], found.label, found.caption, found.notes)


def _label(parts: dict[str, bytes]) -> int | None:
    if "cls" not in parts:
        return None
    text = parts["cls"].decode("utf-8-sig", "replace").strip()
    if not text.isdecimal() or len(text) > 19 or int(text) >= LABEL_LIMIT:
        raise BadImage(f"its .cls holds {text[:40]!r}, not a class number")
    return int(text)


def _scan(tar: Path, place: str, images: str, account: Account) -> dict[str, dict[str, tuple[int, int]]]:
    """Return offset and size of each part of each sample with an image; unused members are added to the account.

    Args:
        tar: The tar.
        place: Its name in keys and messages.
        images: The kind of members that are the images: image or array.
        account: The account.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    whole: dict[str, tuple[int, int]] = {}
    try:
        if not tar.is_file():
            raise UserError(f"{tar} is not a regular file")
        with tar.open("rb") as file:
            start = file.read(2)
        if start in _MAGIC:
            raise UserError(
                f"{tar} is compressed with {_MAGIC[start]}, so its samples cannot be read out of order; unpack it"
            )
        if tar.stat().st_size % tarfile.BLOCKSIZE:  # tarfile treats a truncated header as the end
            raise UserError(f"{tar} is not a valid tar file: it is truncated, its size is not a multiple of 512 bytes")
        with tarfile.open(tar, "r:", errors="surrogateescape") as archive:
            for member in archive:
                folder, slash, file_name = member.name.rpartition("/")
                stem, _, ending = file_name.partition(".")
                kind = _KINDS.get(ending.lower(), "")
                part = "image" if kind == images else "" if kind else ending.lower()
                if member.isreg():
                    whole[member.name] = member.offset_data, member.size
                content = whole.get(member.linkname if member.islnk() else member.name)
                if not stem or part not in _PARTS or content is None:
                    if file_name and not file_name.startswith(".") and (why := _not_used(file_name, ending, member)):
                        account.add_skipped(why, f"{place}/{member.name}")
                    continue
                parts = samples.setdefault(f"{folder}{slash}{stem}", {})
                if part in parts:
                    raise UserError(f"{tar}: two members hold the {part} of the sample {folder}{slash}{stem}")
                parts[part] = content
    except tarfile.TarError as error:
        raise UserError(f"{tar} is not a valid tar file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error.strerror}") from error
    account.add_unmatched(f"members of {place}", (name for name, parts in samples.items() if "image" not in parts))
    return {name: parts for name, parts in samples.items() if "image" in parts}


def _not_used(file_name: str, ending: str, member: tarfile.TarInfo) -> str | None:
    """Return why a member that may be an image is not used, None for anything else."""
    last = extension(file_name)
    if last not in IMAGE_LIKE and last not in IMAGE_EXTENSIONS:
        return None
    if last in IMAGE_LIKE:
        return f"images of unsupported formats (.{last})"
    if "." in ending:
        return f"images with a dot in their names, which makes them parts of samples (.{valid_text(ending.lower())})"
    return "links to missing members, or symbolic links" if member.islnk() or member.issym() else "empty names"


def _expand(pattern: str) -> list[Path]:
    """Return the tars of a pattern with number ranges and shell wildcards; each part of it must match a file."""
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
