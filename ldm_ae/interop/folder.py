"""Atomic export of a folder, which appears whole or not at all and never replaces a folder with other files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ldm_ae.io.files import new_folder, require_new_folder, writing_folder


@contextlib.contextmanager
def exporting(out: str | Path, *, own_files: frozenset[str], size: int, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder to write into; it replaces `out` when the block ends without error.

    Args:
        out: The folder to create. It may exist if it is empty, or with `overwrite` an earlier export of this format.
        own_files: The file names of an export of this format. A folder with any other name in it is not replaced.
        size: Bytes that will be written, as far as known.
        overwrite: Whether an earlier export may be replaced.

    Raises:
        RunError: the disk is full.
        UserError: `out` is a file, holds other files, or cannot be written.
    """
    out = Path(out).absolute()
    require_new_folder(out, "the model", own_files=own_files, overwrite=overwrite)
    with new_folder(out.parent), writing_folder(out, size=size) as temporary:
        yield temporary
        assert set(os.listdir(temporary)) <= own_files, "an export writes only the names that it declares"
