"""Networks that are never trained, such as a pretrained backbone, and networks with such a part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_ae.core.precision import INFERENCE_LAYOUT, LAYOUTS


class FrozenNetwork(nn.Module):
    """A measuring instrument: modules and parameters are frozen and in eval mode from the moment they are assigned.

    The networks' weights are kept in the dtype that they compute in (`set_precision`): autocast would cast frozen
    weights anew at every call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.eval()

    def set_precision(self, dtype: torch.dtype) -> FrozenNetwork:
        """Compute in `dtype`, channels-last.

        Submodules are cast. The instrument's own parameters and buffers stay in float32.
        """
        self.dtype = dtype
        self._cast(self, dtype)
        return self

    def _cast(self, module: nn.Module, dtype: torch.dtype) -> None:
        for network in module.children():
            if isinstance(network, FrozenNetwork):
                network.set_precision(dtype)
            elif isinstance(network, nn.ModuleList | nn.ModuleDict):
                self._cast(network, dtype)
            else:
                network.to(dtype=dtype, memory_format=LAYOUTS[INFERENCE_LAYOUT])  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> FrozenNetwork:  # noqa: ARG002 - the signature is torch's
        """Stay in eval mode."""
        return super().train(False)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            value.eval()
        if isinstance(value, nn.Module | nn.Parameter):
            value.requires_grad_(False)
        super().__setattr__(name, value)


class PartlyFrozen(nn.Module):
    """A module whose class declares in `frozen` the submodules that are never trained.

    These are in eval mode and without gradients from the moment they are assigned, and state dicts exclude them: their
    weights come from elsewhere. They are excluded from the optimizer and from checkpoints.
    """

    frozen: ClassVar[tuple[str, ...]] = ()
    """Names of the submodules that are never trained."""

    def learning_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that an optimizer updates."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def learning_buffers(self) -> Iterator[Tensor]:
        """Return the buffers outside the frozen submodules: running statistics and averages."""
        partly_frozen = (item for item in self.named_modules() if isinstance(item[1], PartlyFrozen))
        prefixes = tuple(
            f"{path}.{name}.".removeprefix(".") for path, module in partly_frozen for name in module.frozen
        )
        return (buffer for name, buffer in self.named_buffers() if not name.startswith(prefixes))

    def train(self, mode: bool = True) -> PartlyFrozen:
        """Set the mode of all submodules except the frozen ones, which stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules().values():
            module.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state dict without the frozen submodules."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name, module in self._frozen_modules().items():
            for key in module.state_dict():
                del state[f"{kwargs.get('prefix', '')}{name}.{key}"]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # The frozen submodules find their own values in it, so that a strict load has no missing keys.
        for name, module in self._frozen_modules().items():
            state_dict |= {f"{prefix}{name}.{key}": value for key, value in module.state_dict().items()}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _frozen_modules(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.named_children() if name in self.frozen}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.frozen and isinstance(value, nn.Module):
            value.requires_grad_(False).eval()
        super().__setattr__(name, value)
