"""Power-function averages of a model's weights while it is trained; `profiles.py` has the source and the formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.averaging import copy_buffers
from ldm_ae.models import Autoencoder
from ldm_ae.training.averages.profiles import decay

Weights = dict[str, Tensor]


class Averaged(NamedTuple):
    """Averages at one step, on the host."""

    averages: dict[float, Weights]
    """Averaged parameters by length and name, float32. Frozen parameters are absent: they equal the model's."""
    buffers: Weights
    """The model's buffers at that step, which are not averaged."""


class PowerEMA:
    """Averages of several lengths: averaged = beta(t) * averaged + (1 - beta(t)) * current, t = 1, 2, ...

    Parameters that neither an optimizer nor `learn` changes are not stored; buffers are copied.

    Args:
        model: The model on its device; an average begins at its weights, which the first update replaces.
        lengths: The lengths (sigma_rel), all different.
        evaluated: A copy of the model, placed like it, that holds the average of the first length; None stores that one
            like the others.
    """

    def __init__(self, model: Autoencoder, lengths: Sequence[float], evaluated: Autoencoder | None):
        learned = {id(tensor) for tensor in model.learned_parameters()}
        # The parameters themselves: DistributedDataParallel, which wraps the model later, may replace their data.
        parameters = {
            name: parameter
            for name, parameter in model.net.named_parameters()
            if parameter.requires_grad or id(parameter) in learned
        }
        self._model, self._evaluated = model, evaluated
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._averages = {length: [tensor.clone() for tensor in self._current()] for length in lengths}
        if evaluated is not None:
            own = dict(evaluated.net.named_parameters())
            self._averages[lengths[0]] = [own[name].detach() for name in self._names]

    @property
    def lengths(self) -> tuple[float, ...]:
        """The lengths."""
        return tuple(self._averages)

    def size(self) -> int:
        """Return the number of bytes of one snapshot of all averages."""
        return len(self._averages) * sum(parameter.nbytes for parameter in self._parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights after update number `step`, counted from 0: one fused operation for each length."""
        current = self._current()
        for length, averaged in self._averages.items():
            torch._foreach_lerp_(averaged, current, 1.0 - decay(length, step + 1))
        if self._evaluated is not None:
            copy_buffers(self._evaluated, self._model)

    def _current(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._parameters]

    def state(self) -> dict[str, Weights]:
        """Return what a checkpoint holds besides the evaluated model: averages by length and name, not copied."""
        stored = list(self._averages.items())[self._evaluated is not None :]
        return {repr(length): dict(zip(self._names, averaged, strict=True)) for length, averaged in stored}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state` returned.

        Raises:
            KeyError, RuntimeError: It belongs to other lengths or another network.
        """
        for length, averaged in self.state().items():
            for name, tensor in averaged.items():
                tensor.copy_(state[length][name])

    def copied(self) -> Averaged:
        """Return copies of the averages and of the model's buffers on the host."""
        averages = {
            length: {name: _on_host(tensor) for name, tensor in zip(self._names, averaged, strict=True)}
            for length, averaged in self._averages.items()
        }
        parameters = dict(self._model.net.named_parameters())
        buffers = {name: tensor for name, tensor in self._model.net.state_dict().items() if name not in parameters}
        return Averaged(averages, {name: _on_host(tensor) for name, tensor in buffers.items()})


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
