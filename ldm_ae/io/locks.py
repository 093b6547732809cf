"""One folder, one writer.

A record lock (POSIX `fcntl`) on `.lock` in the folder. The system releases it however its process ends, so a lock is
never stale, and processes forked from its holder do not keep it. The file's content only names the holder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from ldm_ae.core.errors import UserError

LOCK = ".lock"
_REFUSED = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[str] = set()  # record locks belong to the process, which would be granted a second one
_log = logging.getLogger("ldm_ae")


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Lock `folder` against other writers that use this lock, on this machine or another on the same file system.

    Raises:
        UserError: Another process holds the lock; the message names its host, PID and start time.
    """
    path = Path(folder).resolve() / LOCK
    descriptor = _acquire(path)
    _held.add(str(path))
    try:
        yield
    finally:
        _held.discard(str(path))
        path.unlink(missing_ok=True)  # before the lock is released, so that no new lock is unlinked
        os.close(descriptor)


def refuse_if_held(folder: str | Path) -> None:
    """Raise UserError if another process holds `folder`; creates nothing. A quick check before slow imports."""
    if (owner := holder(folder)) is not None:
        raise _in_use(Path(folder).resolve(), owner)


def holder(folder: str | Path) -> str | None:
    """Describe the other process that holds `folder`; None if there is none."""
    path = Path(folder).resolve() / LOCK
    if str(path) in _held or not path.is_file():
        return None
    try:
        with path.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _read(path) if error.errno in _REFUSED and path.is_file() else None
    return None


def _acquire(path: Path) -> int:
    if str(path) in _held:
        raise UserError(f"{path.parent} is already in use by this process")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _REFUSED:
                raise _in_use(path.parent, _read(path)) from error
            if error.errno in _NO_LOCKS:
                _log.warning(
                    "%s is on a file system without locks: make sure that no other process writes to it", path.parent
                )
                return os.open(path, os.O_RDWR)
            raise
        if _is_still(descriptor, path):
            break
        os.close(descriptor)  # the holder has just unlinked it: the lock is on a file that no other process finds
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(mine).encode(), 0)
    return descriptor


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _in_use(folder: Path, owner: str) -> UserError:
    return UserError(f"{folder} is in use by {owner}; wait for it or stop it, or give another folder")


def _read(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # the file is being written
        return "another process"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
