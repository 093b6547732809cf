"""Safetensors files with the same bytes for the same content, and the size and hash that identify a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from ldm_ae.io.direct_files import Written
from ldm_ae.io.files import sha256, writing
from ldm_ae.io.tensor_files import safetensors_pieces


def write_bytes(path: Path, *parts: bytes | memoryview) -> Written:
    """Write the file `path` from its parts, atomically."""
    digest = hashlib.sha256()
    size = sum(len(part) for part in parts)
    with writing(path, size=size) as temporary, temporary.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
    return Written(digest.hexdigest(), size)


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Written:
    """Write a safetensors file atomically; its bytes depend on its content alone."""
    return write_bytes(path, *safetensors_pieces(tensors, metadata))


def look_at(path: Path) -> Written:
    """Return size and sha256 of the current file at `path`."""
    return Written(sha256(path), path.stat().st_size)
