"""Files that are either complete or absent: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import RunError, UserError, printable

_OURS = ".{name}.{pid}.{kind}"  # names of unfinished files and of files that are not yet removed


@contextmanager
def writing(path: str | Path, *, size: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` on success and removed on failure.

    The resulting file has the mode of the umask, whatever mode its writer set.

    Args:
        path: The file.
        size: Bytes that will be written, if known.

    Raises:
        RunError: The disk is full.
    """
    path = Path(path)
    temporary = path.with_name(_OURS.format(name=path.name, pid=os.getpid(), kind="tmp"))
    try:
        with _room_for(path, size):
            yield temporary
            apply_umask(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(folder: str | Path, *, size: int = 0, many_files: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, renamed to `folder` on success; then a previous folder is removed.

    Args:
        folder: The folder.
        size: Bytes that will be written, if known.
        many_files: Flush all pending writes of the machine once instead of an fsync for each file: at two milliseconds
            each, a million of them take over half an hour.

    Raises:
        RunError: The disk is full.
    """
    folder = Path(folder)
    temporary = folder.with_name(_OURS.format(name=folder.name, pid=os.getpid(), kind="tmp"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with _room_for(folder, size):
            yield temporary
            for place, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    apply_umask(Path(place, name))
                    if not many_files:
                        sync(Path(place, name))
                if not many_files:
                    sync(Path(place))
            if many_files:
                os.sync()
            replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Rename the finished folder `source` to `target`; an old `target` is removed once the new one is in place.

    If `target` is a link, the link is removed, not the folder that it points to.
    """
    old = target.with_name(_OURS.format(name=target.name, pid=os.getpid(), kind="old"))
    _remove(old)
    if target.exists() or target.is_symlink():
        os.rename(target, old)
    os.rename(source, target)
    sync(target.parent)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Clean up after a killed process in `folder`: restore an old folder that lost its name, remove other leftovers.

    Call it only for a folder that no other process writes to.
    """
    for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
        name, pid, kind = path.name[1:].rsplit(".", 2) if path.name.count(".") >= 3 else ("", "", "")
        if not pid.isdigit():
            continue
        if kind == "old" and not (folder / name).exists():
            os.rename(path, folder / name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _room_for(path: Path, size: int) -> Iterator[None]:
    """Raise RunError if `size` bytes do not fit, before writing if the file system reports free space correctly."""
    if shutil.disk_usage(path.parent).free < size:
        raise _no_room(path, size)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_room(path, size) from error
    except Exception as error:
        # safetensors raises its own class with the system's message.
        if f"os error {errno.ENOSPC}" not in str(error) and f"os error {errno.EDQUOT}" not in str(error):
            raise
        raise _no_room(path, size) from error


def _no_room(path: Path, size: int) -> RunError:
    free = shutil.disk_usage(path.parent).free
    needed = f"{size:,} bytes are needed and " if size else ""
    return RunError(
        f"cannot write {path}: the disk is full, {needed}{free:,} are free; make space and run the same command again"
    )


def sync(path: Path) -> None:
    """Call fsync on a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def apply_umask(path: Path) -> None:
    """Set the mode that a plain `open` would have set; safetensors 0.8 leaves 0600."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    content = _json_bytes(value)
    with writing(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


def read_json(path: str | Path, *, as_written: bool = False) -> Any:
    """Read the JSON value in a file.

    Args:
        path: The file.
        as_written: Accept only the bytes that `write_json` writes, so that every change to the file is detected.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not UTF-8, not JSON, nested too deeply, or not as written; the reason is on one line.
    """
    data = Path(path).read_bytes()
    try:
        value = json.loads(data.decode("utf-8"))
        if as_written and _json_bytes(value) != data:
            raise ValueError("its layout is not the one that this program writes")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def require_json(path: str | Path) -> Any:
    """Read the JSON value in a file that a user gave; UserError if it cannot be read or is not JSON."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def sha256(path: str | Path) -> str:
    """Return the hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: object) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()


def require_new_folder(
    path: str | Path, purpose: str, *, own_files: Collection[str] = (), overwrite: bool | None = None
) -> None:
    """Raise UserError unless a command may write its results into a folder: the one rule of all output folders.

    The folder must be absent or empty. With `overwrite` it may also hold an earlier result of the same kind, which is
    replaced. Files of any other name are never replaced.

    Args:
        path: The folder.
        purpose: What will be in the folder, such as `the images`.
        own_files: The file names of which a result of this kind consists.
        overwrite: Whether an earlier result may be replaced; None where results have no names to tell them by.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for {purpose}")
    found = sorted(os.listdir(folder)) if folder.is_dir() else []
    other = [name for name in found if name not in own_files]
    if other and overwrite is None:
        raise UserError(f"{folder} is not empty ({printable(other[0])}); give a new folder for {purpose}")
    if other:
        raise UserError(f"{folder} holds other files ({printable(other[0])}); give a new or empty folder for {purpose}")
    if found and not overwrite:
        raise UserError(
            f"{folder} holds an earlier result ({found[0]}); add --overwrite (overwrite=True in Python) to replace it, "
            f"or give a new folder for {purpose}"
        )


def make_folder(path: str | Path) -> Path:
    """Return the folder, created if it is absent; UserError if it is not writable."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; give another output folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: permission denied; give another output folder")
    return folder


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder for the block; if the block raises, created folders are removed unless they contain something.

    Raises:
        UserError: The folder is not writable.
    """
    folder = Path(path)
    with leaving_nothing(folder):
        yield make_folder(folder)


@contextmanager
def leaving_nothing(path: str | Path) -> Iterator[Callable[[], None]]:
    """Remove a folder, and its parents, that the block created and left empty when it raised.

    Yields a function that disables this: after it is called, the folder stays.
    """
    missing = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
    kept: list[bool] = []
    try:
        yield lambda: kept.append(True)
    except BaseException:
        if not kept:
            with suppress(OSError):  # it is not empty, or was never created
                for folder in missing:
                    folder.rmdir()
        raise
