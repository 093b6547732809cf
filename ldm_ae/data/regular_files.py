"""Reading files that users name or that lie among their images, without waiting for what is not a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ldm_ae.data.decoding import BadImage

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def read_regular_file(path: Path) -> bytes:
    """Return the content of a regular file, or of one that a link leads to.

    Opening a named pipe would wait for a writer, and reading a device might never end.

    Raises:
        BadImage: It is something other than a regular file.
        OSError: It cannot be read.
    """
    with open(path, "rb", opener=_open_regular_file) as file:
        return file.read()


def read_regular_text(path: Path) -> str:
    """Return the text of a UTF-8 file, its line ends as newlines; errors as above, and UnicodeDecodeError."""
    with open(path, encoding="utf-8", opener=_open_regular_file) as file:
        return file.read()


def _open_regular_file(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # without effect on regular files
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise BadImage(f"{_KINDS.get(stat.S_IFMT(mode), 'something')}, not a regular file")
    return descriptor
