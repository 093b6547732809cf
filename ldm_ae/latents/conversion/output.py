"""Where a conversion goes: whole or not there, never in the place of somebody's files, and with its own account in it.

    ldm_ae.json         what was converted and how: the format, the fold and its inverse, the store's request
    ldm_ae.parquet      the store's index rows of the images, in the order of their numbers
    classes.json        the names of the labels 0, 1, ..., where the store has them

They lie in the folder, or in the ZIP file, where no trainer's reader looks at them.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_ae.core.errors import UserError
from ldm_ae.io.files import new_folder, require_new_folder, writing, writing_folder
from ldm_ae.latents.store.format import CLASSES

METADATA, INDEX_FILE = "ldm_ae.json", "ldm_ae.parquet"
KIND, VERSION = "ldm_ae conversion", 1


@contextlib.contextmanager
def converting(out: str | Path, *, suffix: str) -> Iterator[Path]:
    """A place to write to, which becomes `out` when the block ends without an error.

    Args:
        out: A new or empty folder, or with `suffix` a file that is not there.
        suffix: What the one file ends in; empty for a folder.

    Raises:
        UserError: there is something at `out`, it has another ending, or it cannot be written.
    """
    out = Path(out).absolute()
    if suffix:
        if out.suffix != suffix:
            raise UserError(f"{out} has to end in {suffix} in this format")
        if out.exists():
            raise UserError(f"{out} is there already; delete it, or name another file")
        with new_folder(out.parent), writing(out) as temporary:
            yield temporary
        return
    require_new_folder(out, "the conversion")
    with new_folder(out.parent), writing_folder(out, many_files=True) as temporary:
        yield temporary


def write_account(place: Path, metadata: dict[str, Any], rows: pa.Table, classes: Sequence[str] = ()) -> None:
    """The files, into a folder or a ZIP file that is otherwise finished."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content = json.dumps({"kind": KIND, "version": VERSION} | metadata, indent=2, allow_nan=False) + "\n"
    files = {METADATA: content.encode(), INDEX_FILE: sink.getvalue().to_pybytes()}
    if classes:
        files[CLASSES] = (json.dumps(list(classes), indent=2) + "\n").encode()
    if place.is_dir():
        for name, value in files.items():
            (place / name).write_bytes(value)
        return
    with zipfile.ZipFile(place, "a", zipfile.ZIP_STORED) as archive:
        for name, value in files.items():
            archive.writestr(member(name), value)


def read_account(metadata: bytes, index: bytes, path: Path) -> tuple[dict[str, Any], pa.Table]:
    """The inverse of `write_account`, without the classes, which the metadata has too.

    Raises:
        UserError: the two are damaged, or of another version.
    """
    try:
        content = json.loads(metadata)
        rows = pq.read_table(pa.BufferReader(index))
        if content["kind"] != KIND:
            raise ValueError(f"it is no {KIND}")
        version = content["version"]
    except (ValueError, KeyError, TypeError, RecursionError, OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: {METADATA} or {INDEX_FILE} is damaged: {reason}") from error
    if version != VERSION:
        raise UserError(f"{path} is a conversion of version {str(version)[:20]}; this program reads {VERSION}")
    return content, rows


def member(name: str) -> zipfile.ZipInfo:
    """A ZIP member that is stored as it is, with the same bytes whenever it is written."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    return info
