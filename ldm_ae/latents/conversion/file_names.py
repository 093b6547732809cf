"""Names of files that a conversion derives from keys."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ldm_ae.core.errors import UserError, printable

_ESCAPED_BYTES = re.compile(r"(?:\\x[89a-f][0-9a-f])+")


def stem(key: str) -> str:
    """Return a key as a relative path without the extension. Backslashes are part of a name.

    Raises:
        UserError: The path would lead outside the folder, or has a null character.
    """
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in re.split(r"[/\\]", key) or not path.name or "\0" in key:
        raise UserError(f"the key '{printable(key)}' is not a path inside a folder, so it cannot name a file")
    return path.with_suffix("").as_posix()


def file_stem(key: str) -> str:
    """Return the same for a file beside the image, whose name has bytes where the key has escapes for them.

    A folder's keys have backslash escapes for the bytes of a name that are not UTF-8. A name that contains such an
    escape as text cannot be distinguished from them, and the escape is interpreted as bytes.
    """
    return _ESCAPED_BYTES.sub(_unescaped, stem(key))


def _unescaped(escapes: re.Match[str]) -> str:
    content = bytes.fromhex(escapes[0].replace("\\x", ""))
    try:
        content.decode()
    except UnicodeDecodeError:
        return content.decode("utf-8", "surrogateescape")
    return escapes[0]  # These bytes would not have been escaped; the backslashes belong to the name itself.
