"""Reading safetensors, with an error of one line for each way a file can be wrong."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm_ae.errors import UserError, reason


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        UserError: no such file, or a damaged one.
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
    ) as error:  # the latter are torch's, of shapes
        raise UserError(f"{path} is not a sound safetensors file: {reason(error)}") from error
