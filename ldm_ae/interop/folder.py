"""Atomic export of a folder, which appears whole or not at all and never replaces a folder with other files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.io.files import new_folder, writing_folder


@contextlib.contextmanager
def exporting(out: str | Path, *, own_files: frozenset[str], size: int) -> Iterator[Path]:
    """Yield a temporary folder to write into; it replaces `out` when the block ends without error.

    Args:
        out: The folder to create. It may exist if it is empty or an earlier export of the same format.
        own_files: The file names of an export of this format. A folder with any other name in it is not replaced.

        size: Bytes that will be written, as far as known.

    Raises:
        RunError: the disk is full.
        UserError: `out` is a file, holds other files, or cannot be written.
    """
    out = Path(out).absolute()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to export into")
    if out.is_dir() and (foreign := sorted(set(os.listdir(out)) - own_files)):
        raise UserError(f"{out} holds other files ({foreign[0]}); export into a new or empty folder")
    with new_folder(out.parent), writing_folder(out, size=size) as temporary:
        yield temporary
        assert set(os.listdir(temporary)) <= own_files, "an export writes only the names that it declares"
