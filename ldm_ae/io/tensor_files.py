"""Safetensors files: read with a one-line error for each kind of damage, and written piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm_ae.core.errors import UserError, reason

DTYPE_NAMES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e8m0fnu: "F8_E8M0", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of dtypes in the format, in the order in which the library writes the tensors of a file."""
_PLACES = {dtype: place for place, dtype in enumerate(DTYPE_NAMES)}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name, on the CPU.

    Raises:
        UserError: The file does not exist or is damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (
        SafetensorError,
        OSError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # the last ones come from torch, about shapes
        raise UserError(f"{path} is not a valid safetensors file: {reason(error)}") from error


def safetensors_pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the safetensors file of `tensors`: its header, then one contiguous tensor at a time.

    The bytes equal those of `safetensors.torch.save`, which takes all tensors at once and a copy of each; only the
    metadata are sorted by name, while the library's order changes from process to process.

    Raises:
        KeyError: The library's files do not support the dtype.
    """
    names = sorted(tensors, key=lambda name: (_PLACES[tensors[name].dtype], name))
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return chain([len(encoded).to_bytes(8, "little") + encoded], (_rows(tensors[name]) for name in names))


def _rows(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data
