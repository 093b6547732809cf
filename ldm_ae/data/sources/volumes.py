"""Slices of DICOM and NIfTI files."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm_ae.core.errors import UserError
from ldm_ae.data.account import Account
from ldm_ae.data.sources.folder import FolderSource
from ldm_ae.data.sources.interface import (
    VOLUME_EXTENSIONS,
    RawImage,
    Source,
    extension,
    read_regular,
    valid_text,
)
from ldm_ae.data.sources.tree import TEXTS, Tree
from ldm_ae.images import dicom, nifti
from ldm_ae.images.decoding import MAX_PIXELS, BadImage


class VolumeSource(Source):
    """All slices of the DICOM and NIfTI files below a folder, sorted by path and number.

    A file of one slice is one image, whose key is the path relative to the folder. A slice of a file of several has the
    key PATH/NUMBER, from 0 and with as many digits as the file needs, and is given as an array in the units of the file
    (`ldm_ae.images.dicom`, `ldm_ae.images.nifti`). Labels and captions are those of a folder of images: the first-level
    folder, and texts beside the file, which all its slices have. An unreadable file counts as one image, which is bad
    when it is read.
    """

    name = "volumes"
    accepts = "a folder of DICOM or NIfTI files"
    scheme = "volumes"

    def __init__(self, root: Path, paths: list[str], beside: Sequence[str] = (), tree: Tree | None = None) -> None:
        """Read the headers of the files.

        Args:
            root: The folder.
            paths: The files' POSIX paths relative to it, in their final order.
            beside: The paths of texts beside them.
            tree: The other contents of the folder.
        """
        self._root = root
        self._files = FolderSource(root, paths, beside, tree, used=VOLUME_EXTENSIONS)
        self._paths = paths
        self._counts = np.array([_count(root / path) for path in paths], np.int64)
        self._ends = self._counts.cumsum()

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> VolumeSource | None:
        """See `Source.open`."""
        path = Path(location)
        if path.is_file() and extension(path.name) in VOLUME_EXTENSIONS:
            return cls(path.parent, [path.name])
        if not path.is_dir():
            return None
        tree = tree or Tree(path)
        paths = tree.files(*VOLUME_EXTENSIONS)
        return cls(path, paths, tree.files(*TEXTS), tree) if paths else None

    def account(self) -> Account:
        """See `Source.account`."""
        found = self._files.account()
        found.kind, found.images = self.name, len(self)
        if "class folders" in found.labels:
            found.labels["class folders"] = int(self._counts[["/" in path for path in self._paths]].sum())
        found.notes.append(f"slices of {len(self._paths)} DICOM and NIfTI files")
        return found

    def with_classes(self, classes: Sequence[str], origin: str) -> VolumeSource:
        """See `Source.with_classes`."""
        found = copy.copy(self)
        found._files = self._files.with_classes(classes, origin)
        return found

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[int, int]:
        """Return the file of a slice, and the slice's number in it."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - int(self._ends[file] - self._counts[file])

    def key(self, index: int) -> str:
        """Return the path relative to the root, with the slice's number if the file has several."""
        file, number = self._find(index)
        path, count = valid_text(self._paths[file]), int(self._counts[file])
        return path if count == 1 else f"{path}/{number:0{len(str(count - 1))}d}"

    def __getitem__(self, index: int) -> RawImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        file, number = self._find(index)
        path = self._root / self._paths[file]
        if self._counts[file] == 1:
            data = read_regular(path)
        else:
            buffer = io.BytesIO()
            np.save(buffer, (nifti.read_slice if _is_nifti(path) else dicom.read_frame)(path, number, MAX_PIXELS))
            data = buffer.getvalue()
        return self._files.annotated(file, self.key(index), data)


def _is_nifti(path: Path) -> bool:
    return extension(path.name).startswith("nii")


def _count(path: Path) -> int:
    """Return the number of slices of a file, 1 of one that cannot be read; UserError if a package is missing."""
    module = nifti if _is_nifti(path) else dicom
    if (missing := module.missing_package()) is not None:
        raise UserError(f"{path}: {missing}")
    try:
        return nifti.count_slices(path) if module is nifti else dicom.count_frames(path)
    except (BadImage, OSError):
        return 1
