"""Downloads of files whose digest is known beforehand."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.io.files import writing

_BLOCK = 1 << 20


def download(
    url: str,
    path: Path,
    *,
    sha256: str,
    progress: Callable[[int, int | None], None] | None = None,
    timeout: float = 10.0,
) -> None:
    """Download a file to `path`, whose folder is created if necessary. The file exists only with the expected digest.

    Args:
        url: Address, tried once.
        path: The file to write.
        sha256: Hex digest of the file.
        progress: Called with the number of bytes that have arrived and with their total, None where it is unknown.
        timeout: Seconds without an answer after which the download fails.

    Raises:
        UserError: The address does not answer, has no such file, ends early, or has a file with another digest; or the
            folder cannot be written to.
        RunError: The disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, path, sha256, progress, timeout)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _download(
    url: str, path: Path, sha256: str, progress: Callable[[int, int | None], None] | None, timeout: float
) -> None:
    digest, done = hashlib.sha256(), 0
    with writing(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                length = answer.headers.get("Content-Length")
                total = int(length) if length else None
                with temporary.open("wb") as file:
                    while block := answer.read(_BLOCK):
                        file.write(block)
                        digest.update(block)
                        done += len(block)
                        if progress is not None:
                            progress(done, total)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is an open answer
            reason = getattr(error, "reason", None) or error
            raise UserError(f"{url} was not downloaded: {reason}") from error
        if (found := digest.hexdigest()) != sha256:
            raise UserError(
                f"{url} was not downloaded: expected a file with sha256 {sha256[:8]}..., got {done:,} bytes with "
                f"{found[:8]}..."
            )
