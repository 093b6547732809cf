"""Safetensors files with the same bytes for the same content, and what a file must be for ever after."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import save
from torch import Tensor

from ldm_ae.files import sha256, writing


class Written(NamedTuple):
    """What tells whether a file is still the one that was written."""

    sha256: str
    size: int


def write_bytes(path: Path, *parts: bytes | memoryview) -> Written:
    """The file `path` from its parts, atomically."""
    digest = hashlib.sha256()
    size = sum(len(part) for part in parts)
    with writing(path, size=size) as temporary, temporary.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
    return Written(digest.hexdigest(), size)


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Written:
    """A safetensors file, atomically, whose bytes follow from its content alone."""
    return write_bytes(path, *safetensors_parts(tensors, metadata))


def safetensors_parts(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[bytes | memoryview, ...]:
    """The bytes of a safetensors file, which follow from its content alone."""
    raw = memoryview(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata))
    length = int.from_bytes(raw[:8], "little")
    # The library writes the metadata in an order that changes from process to process.
    header = json.loads(bytes(raw[8 : 8 + length]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little"), encoded, raw[8 + length :]


def look_at(path: Path) -> Written:
    """Size and sha256 of what lies at `path` now."""
    return Written(sha256(path), path.stat().st_size)
