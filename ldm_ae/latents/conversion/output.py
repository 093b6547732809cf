"""The output of a conversion: complete or absent, never overwriting existing files, and with its own description.

    ldm_ae.json         the conversion: the format, the fold and its inverse, the store's request
    ldm_ae.parquet      the store's index rows of the images, in the order of their numbers
    classes.json        the names of the labels 0, 1, ..., if the store has them

They lie in the folder, or in the ZIP file, where trainers' readers ignore them.
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
    """Provide a path to write to, which becomes `out` when the block ends without an error.

    Args:
        out: A new or empty folder, or with `suffix` a file that does not exist.
        suffix: The suffix of the single file; empty for a folder.

    Raises:
        UserError: `out` already exists, has another suffix, or cannot be written.
    """
    out = Path(out).absolute()
    if suffix:
        if out.suffix != suffix:
            raise UserError(f"{out} must end in {suffix} in this format")
        if out.exists():
            raise UserError(f"{out} already exists; delete it, or give another file")
        with new_folder(out.parent), writing(out) as temporary:
            yield temporary
        return
    require_new_folder(out, "the conversion")
    with new_folder(out.parent), writing_folder(out, many_files=True) as temporary:
        yield temporary


def write_account(place: Path, metadata: dict[str, Any], rows: pa.Table, classes: Sequence[str] = ()) -> None:
    """Write the description files into a folder or a ZIP file that is otherwise finished."""
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
    """Read what `write_account` wrote, without the classes, which the metadata also has.

    Raises:
        UserError: The two are damaged, or have another version.
    """
    try:
        content = json.loads(metadata)
        rows = pq.read_table(pa.BufferReader(index))
        if content["kind"] != KIND:
            raise ValueError(f"it is not an {KIND}")
        version = content["version"]
    except (ValueError, KeyError, TypeError, RecursionError, OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: {METADATA} or {INDEX_FILE} is damaged: {reason}") from error
    if version != VERSION:
        raise UserError(f"{path} is a conversion of version {str(version)[:20]}; this program reads {VERSION}")
    return content, rows


def member(name: str) -> zipfile.ZipInfo:
    """Return an uncompressed ZIP member, whose bytes do not depend on the time of writing."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    return info
