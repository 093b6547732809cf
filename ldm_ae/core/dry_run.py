"""Check whether a network accepts tensors of a shape before any work is done.

The pass runs on PyTorch's fake tensors, which have a shape and a device but no numbers: it takes milliseconds whatever
the size, and no memory. A network that does not run on them is computed for real, on at most two samples.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ldm_ae.core.errors import reason

_MOST_SAMPLES = 2
_LONGEST_SIDE = 256
_TORCH_LOG = logging.getLogger("torch._subclasses.fake_tensor")
"""Logger that prints a traceback for a rejected shape."""
Module = TypeVar("Module", bound=nn.Module)


def dry_run(module: Module, call: Callable[[Module, Sequence[Tensor]], Any], shapes: Sequence[tuple[int, ...]]) -> Any:
    """Return the result of `call` for a copy of the module, in its own mode, and tensors of these shapes.

    The module and the state of the random number generators stay as they are.

    Args:
        module: Any network, on any device.
        call: Receives the copy and the tensors, float32 in [-1, 1] on the module's device.
        shapes: Shape (B, ...) of each tensor.

    Raises:
        RefusedError: The network does not accept these shapes; the text gives PyTorch's reason.
    """
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    was_disabled = _TORCH_LOG.disabled
    with torch.no_grad():
        try:
            _TORCH_LOG.disabled = True
            with FakeTensorMode(allow_non_fake_inputs=True):
                return call(_faked(module), [torch.empty(shape, device=device) for shape in shapes])
        except Exception:  # noqa: BLE001 - caused by the shapes or by an operation that needs numbers: the next pass shows
            pass
        finally:
            _TORCH_LOG.disabled = was_disabled
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            few = [(min(shape[0], _MOST_SAMPLES), *shape[1:]) for shape in shapes]
            try:
                return call(copy.deepcopy(module), [torch.rand(shape, device=device) * 2 - 1 for shape in few])
            except Exception as error:
                raise RefusedError(reason(error)) from error


def is_dry(tensor: Tensor) -> bool:
    """Return whether a tensor is one of `dry_run`, which has a shape and no values."""
    return isinstance(tensor, FakeTensor)


def smallest_side(
    module: Module, call: Callable[[Module, Sequence[Tensor]], Any], shape: tuple[int, ...], *, multiple: int = 1
) -> int | None:
    """Return the shortest side of square images that a network accepts; None if it accepts none up to `_LONGEST_SIDE`.

    Args:
        module: Any network, as for `dry_run`.
        call: As for `dry_run`.
        shape: (B, 3, H, W) of images that it does not accept; smaller ones are not tried.
        multiple: Divisor of the side.
    """
    for side in range((min(shape[2:]) // multiple + 1) * multiple, _LONGEST_SIDE + 1, multiple):
        try:
            dry_run(module, call, [(*shape[:2], side, side)])
        except RefusedError:
            continue
        return side
    return None


class RefusedError(Exception):
    """A network does not accept a shape; the text is the reason in one line."""


def _faked(module: Module) -> Module:
    """Return a copy whose parameters and buffers are fake, so that no weight is copied; call it in a fake mode."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        # A third of the time of `FakeTensorMode.from_tensor`, which also keeps views of one storage together.
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        memo[id(tensor)] = nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake
    return copy.deepcopy(module, memo)
