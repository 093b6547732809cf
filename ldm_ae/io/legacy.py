"""Reader of pickled weights, the only place that opens them, with PyTorch's unpickler that builds only tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError, printable


class _Ignored:
    """Stand-in for a class in a checkpoint's bookkeeping that is not built; it takes any arguments and does nothing."""

    def __init__(self, *_: Any):
        pass


_NAMED = (
    # CompVis's checkpoints name this class in the callback state that Lightning stores beside the weights ...
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    # ... and later ones store their training configuration, as hyper_parameters of omegaconf.
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
)
"""Bookkeeping classes of known programs, for which `_Ignored` stands in. Any other class or function is refused."""
CONTAINERS = (
    "state_dict", "model", "module", "model_state_dict", "generator", "vae", "autoencoder", "net", "params", "weights",
    "ema", "model_ema", "params_ema", "ema_state_dict", "state_dict_ema",
)  # fmt: skip
"""Names under which a checkpoint keeps its weights beside optimizers and counters, in order of preference."""
_DEEPEST = 4


@dataclass(frozen=True, kw_only=True)
class LegacyWeights:
    """The tensors of a pickled checkpoint, and their location in it."""

    tensors: dict[str, Tensor]
    container: tuple[str, ...]
    """Names of the opened dictionaries, the outermost first."""
    beside: tuple[str, ...]
    """Other dictionaries of weights beside the opened one."""
    scale_factor: Tensor | None = None
    """Scale factor of a latent diffusion model, where it is not a tensor among the others: the innermost one beside the
    opened dictionaries, or a plain number."""


def read_legacy_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pth` or `.ckpt` file by name, on the CPU; an inner `state_dict`, `model`, ... is opened.

    Raises:
        UserError: The file does not exist, is not a PyTorch file, or contains anything but plain data.
    """
    return open_legacy_weights(path).tensors


def open_legacy_weights(path: str | Path) -> LegacyWeights:
    """Read as `read_legacy_weights`, and return where the tensors were found."""
    try:
        # Pass an open file: by the name .safetensors alone torch would treat it as one of those.
        with torch.serialization.safe_globals([(_Ignored, name) for name in _NAMED]), Path(path).open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except Exception as error:  # damaged files make the unpickler raise KeyError, AssertionError, ...
        raise UserError(f"{path} was not opened: {_refusal(error)}") from error
    if isinstance(content, Tensor):
        raise UserError(f"{path} holds a single tensor of shape {tuple(content.shape)}, not the weights of a network")
    container: list[str] = []
    beside: tuple[str, ...] = ()
    scale_factor: Tensor | None = None
    while isinstance(content, dict) and len(container) < _DEEPEST:
        found = [name for name in CONTAINERS if _has_tensors(content.get(name))]
        if not found:
            break
        container.append(found[0])
        beside = tuple(found[1:])
        scale_factor = _scale_factor(content, scale_factor)
        content = content[found[0]]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict of tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(printable(key, 30) for key in list(content)[:5])
        raise UserError(f"{path} holds no state dict of tensors; it has {keys or 'nothing'}")
    if "scale_factor" not in tensors:
        scale_factor = _scale_factor(content, scale_factor)
    return LegacyWeights(tensors=tensors, container=tuple(container), beside=beside, scale_factor=scale_factor)


def _scale_factor(content: dict[Any, Any], outer: Tensor | None) -> Tensor | None:
    """Return the scale factor of this dictionary, a tensor or a plain number; else `outer`."""
    value = content.get("scale_factor")
    if isinstance(value, Tensor):
        return value
    is_number = type(value) is float or (type(value) is int and abs(value) < 2**63)
    return torch.tensor(value, dtype=torch.float64) if is_number else outer


def _has_tensors(value: object, depth: int = _DEEPEST) -> bool:
    """Return whether `value` is a dictionary with tensors, or one with such a dictionary under a known name."""
    if not isinstance(value, dict):
        return False
    if any(isinstance(item, Tensor) for item in value.values()):
        return True
    return depth > 0 and any(_has_tensors(value.get(name), depth - 1) for name in CONTAINERS)


def _refusal(error: Exception) -> str:
    """Return in one line why PyTorch's unpickler stopped: its own text has several lines and unsafe advice."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    if found := re.search(r"(?:Unsupported global: GLOBAL|load unsupported GLOBAL) (\S+)", text):
        return (
            f"it does not hold only tensors and plain data but would construct {printable(found[1], 80)}, which can "
            "run code; if you trust its author, load it where it was made and save only its state_dict"
        )
    if "TorchScript" in text:
        return "it is a TorchScript archive, a program; save the state_dict of the module instead"
    lines = text.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    said = printable(lines[0]) if lines else type(error).__name__
    return f"it is damaged, or not a file of PyTorch tensors ({said})"
