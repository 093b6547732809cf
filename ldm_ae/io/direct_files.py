"""Large files that are not read soon: hashed from memory while they are written past the page cache.

A file that must be on the disk before work continues gains nothing from the cache. Its bytes would be copied into
newly allocated pages, written back from there, and read once more for the hash.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm_ae.core.background import BackgroundWriter

_O_DIRECT = getattr(os, "O_DIRECT", 0)
_BLOCK = 4096  # direct writes are multiples of this, in memory and on the disk
_BUFFER = 8 << 20
_PIECE = 1 << 20  # hashed and copied at once, so that it is copied from the processor's cache


class Written(NamedTuple):
    """The values that show whether a file is unchanged since it was written."""

    sha256: str
    size: int


def write_direct(path: str | Path, pieces: Iterable[bytes | memoryview]) -> Written:
    """Write a new file from its pieces and flush it; the disk works while the next bytes are hashed.

    Where the file system cannot write past its cache, the file is written normally.

    Raises:
        FileExistsError: The file exists.
        OSError: The disk is full, or fails.
    """
    digest, size = hashlib.sha256(), 0
    with _DirectFile(path) as file, file.disk:
        for piece in pieces:
            size += len(piece)
            for start in range(0, len(piece), _PIECE):
                part = memoryview(piece)[start : start + _PIECE]
                digest.update(part)
                file.write(part)
    return Written(digest.hexdigest(), size)


class _DirectFile:
    """Two buffers of whole pages: one is filled while the other is being written to the disk."""

    def __init__(self, path: str | Path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            self._file = os.open(path, flags | _O_DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            Path(path).unlink(missing_ok=True)  # some file systems refuse only after they have created the file
            self._file = os.open(path, flags, 0o666)
        # Shared, so that a process that forks meanwhile cannot move the pages during the write.
        self._buffer, self._other = mmap.mmap(-1, _BUFFER), mmap.mmap(-1, _BUFFER)
        self._filled = 0
        self.disk = BackgroundWriter()
        """Writes one buffer at a time. The last write must have ended when the file is closed."""

    def write(self, piece: memoryview) -> None:
        """Accept these bytes; an error may concern bytes accepted earlier."""
        source, done = np.frombuffer(piece, np.uint8), 0  # numpy copies without the interpreter's lock
        while done < source.size:
            count = min(source.size - done, _BUFFER - self._filled)
            target = np.frombuffer(self._buffer, np.uint8, count, self._filled)
            target[:] = source[done : done + count]
            done, self._filled = done + count, self._filled + count
            if self._filled == _BUFFER:
                self.disk.submit(partial(self._put, self._buffer, 0, _BUFFER))
                self._buffer, self._other, self._filled = self._other, self._buffer, 0

    def __enter__(self) -> _DirectFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                whole = self._filled - self._filled % _BLOCK
                self._put(self._buffer, 0, whole)
                self._use_cache()  # for the part that is not a whole block
                self._put(self._buffer, whole, self._filled)
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def _put(self, buffer: mmap.mmap, start: int, end: int) -> None:
        view = memoryview(buffer)
        while start < end:
            try:
                start += os.write(self._file, view[start:end])
            except OSError as error:
                # Another block size, or a remainder after a partial write: the cache accepts any size.
                if error.errno != errno.EINVAL or not self._use_cache():
                    raise

    def _use_cache(self) -> bool:
        """Continue with normal cached writes; return whether that changed anything."""
        if not _O_DIRECT:
            return False
        import fcntl

        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_O_DIRECT)
        return bool(flags & _O_DIRECT)
