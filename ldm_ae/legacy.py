"""The one place that opens pickled weights, and only with PyTorch's unpickler that builds nothing but tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm_ae.errors import UserError, reason


class _Ignored:
    """Stands in a checkpoint's bookkeeping for a class that is not built."""


# CompVis's checkpoints name this class in what Lightning kept of its callbacks, beside the weights.
_NAMED = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def read_legacy_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.ckpt` file by name, on the CPU; a `state_dict` inside it is opened.

    Raises:
        UserError: no such file, not a PyTorch file, or one that holds anything but plain data.
    """
    try:
        with torch.serialization.safe_globals([(_Ignored, _NAMED)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except Exception as error:  # of a damaged file, whatever the unpickler stumbles over: KeyError, AssertionError, ...
        raise UserError(f"{path} is not a file of plain PyTorch tensors and was not opened: {reason(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    return {str(name): value for name, value in content.items()}
