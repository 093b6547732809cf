"""An exponential moving average of a network's weights, which is evaluated and exported.

Source: Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992. The warm-up min(decay, (1 + n) / (10 + n)) is LDM's,
but LDM counts n from 1: its first decay is 2/11, ours is 1/10.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from ldm_ae.core.averaging import copy_buffers, warmed_up

Module = TypeVar("Module", bound=nn.Module)


def averaged_copy(model: Module) -> Module:
    """Return a copy that an average is kept in: an ordinary network in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


class EMA(Generic[Module]):
    """The average: averaged = decay_n * averaged + (1 - decay_n) * current, decay_n = min(decay, (1 + n) / (10 + n)).

    Buffers are copied. The averaged model is an ordinary network in eval mode and float32.

    Args:
        model: The model whose weights are averaged; the average starts at its current weights.
        decay: The final decay, in [0, 1).
    """

    def __init__(self, model: Module, decay: float):
        self.decay = decay
        self.model = averaged_copy(model)

    def decay_at(self, step: int) -> float:
        """Return decay_n of update n = `step`, counted from 0."""
        return warmed_up(self.decay, step)

    @torch.no_grad()
    def update(self, model: Module, step: int) -> None:
        """Average in the weights after update number `step`, counted from 0."""
        averaged, current = _tensors(self.model), _tensors(model)
        torch._foreach_lerp_(averaged, current, 1.0 - self.decay_at(step))
        copy_buffers(self.model, model)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in module.parameters()]
