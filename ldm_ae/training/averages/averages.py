"""The averages of a run's weights, and the model that is evaluated and exported in place of the trained one."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from ldm_ae.core.averaging import copy_buffers
from ldm_ae.models import Autoencoder
from ldm_ae.training.averages.power import PowerEMA
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.ema import EMA, averaged_copy
from ldm_ae.training.optimizers import averages_weights


class Averages:
    """All averages that a run keeps. At most one of them is evaluated, in `model`.

    That is the exponential average if there is one, else the power-function average of the first length, else the
    average that a schedule-free optimizer keeps itself.

    Args:
        autoencoder: The model, not yet on its device. `begin` follows once it and `model` are there.
        config: The averages to keep.
        optimizer_averages: Whether the optimizer averages the weights itself.
    """

    def __init__(self, autoencoder: Autoencoder, config: TrainingConfig, *, optimizer_averages: bool):
        self._autoencoder = autoencoder
        self._lengths = config.power_ema_lengths if config.power_ema else []
        self.ema = EMA(autoencoder, config.ema_decay) if config.ema_decay is not None else None
        self.power: PowerEMA | None = None
        self.kind = "weights"
        """What is evaluated, in words."""
        self.model: Autoencoder | None = None
        """The model that is evaluated; None if the weights themselves are."""
        if self.ema is not None:
            self.model, self.kind = self.ema.model, "EMA weights"
        elif self._lengths:
            self.model, self.kind = averaged_copy(autoencoder), f"power EMA weights of length {self._lengths[0]:g}"
        elif optimizer_averages:
            self.model, self.kind = averaged_copy(autoencoder), "the optimizer's averaged weights"

    def begin(self) -> None:
        """Begin the power-function averages, in the memory layout of the placed networks."""
        if self._lengths:
            evaluated = None if self.ema is not None else self.model
            self.power = PowerEMA(self._autoencoder, self._lengths, evaluated)

    def update(self, step: int) -> None:
        """Average in the weights after update number `step`, counted from 0."""
        if self.ema is not None:
            self.ema.update(self._autoencoder, step)
        if self.power is not None:
            self.power.update(step)

    @torch.no_grad()
    def refresh(self, optimizer: Optimizer) -> None:
        """Bring `model` up to date with the average that the optimizer keeps, if it does.

        A schedule-free optimizer's `eval()` turns the parameters into their average, and `train()` back but for
        rounding. The parameters are restored exactly, so a run does not depend on when it validates or saves.
        """
        if self.model is None or not averages_weights(type(optimizer)):
            return
        parameters = [parameter.detach() for parameter in self._autoencoder.parameters()]
        kept = [parameter.clone() for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.eval()  # type: ignore[attr-defined]
        torch._foreach_copy_([parameter.detach() for parameter in self.model.parameters()], parameters)
        optimizer.train()  # type: ignore[attr-defined]
        changed = [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]
        torch._foreach_copy_(changed, kept)
        copy_buffers(self.model, self._autoencoder)
