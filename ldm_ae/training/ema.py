"""An exponential moving average of the autoencoder's weights: what is evaluated and exported.

Source: Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992. The warm-up min(decay, (1 + n) / (10 + n)) is LDM's,
but n counts from 1 there: its first decay is 2/11, ours 1/10.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ldm_ae.models import Autoencoder


class EMA:
    """averaged = decay_n * averaged + (1 - decay_n) * current, with decay_n = min(decay, (1 + n) / (10 + n)).

    Buffers are copied. The averaged model is an ordinary autoencoder in eval mode and float32.

    Args:
        model: Whose weights are averaged; its present ones are the start.
        decay: In [0, 1).
    """

    def __init__(self, model: Autoencoder, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """decay_n of update n = `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: Autoencoder, step: int) -> None:
        """Fold in the weights after update number `step` (from 0)."""
        averaged, current = _tensors(self.model), _tensors(model)
        torch._foreach_lerp_(averaged, current, 1.0 - self.decay_at(step))
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in module.parameters()]
