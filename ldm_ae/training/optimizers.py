"""Optimizers by class path, and the learning rate over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import Registry, full_name

OPTIMIZERS: Registry[Optimizer] = Registry("torch.optim", Optimizer, "optimizer")
"""The optimizers of torch and of plugins by their names."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One network's optimizer and its learning rate."""

    class_path: str = "torch.optim.Adam"
    """Optimizer of torch.optim or of a plugin, by name (adam, adamw, sgd) or class path; `optimizer: adamw` sets it
    too."""
    learning_rate: float = 1e-4
    """Highest learning rate, after warm-up."""
    scale_learning_rate: bool = False
    """Multiply the learning rate by the global batch size, as LDM's recipes do."""
    options: dict[str, Any] = field(default_factory=lambda: {"betas": [0.5, 0.9]})
    """Further arguments of the class, such as betas, eps, weight_decay. Adam and AdamW default to fused."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or a cosine decay to `final_learning_rate_ratio` at the last step."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly from 0."""
    cooldown_steps: int = 0
    """Number of last steps over which the constant schedule's learning rate falls linearly (arXiv 2405.18392). A run
    that resumes before them with a larger `max_steps` equals one that was started with that number."""
    final_learning_rate_ratio: float = 0.0
    """Fraction of the learning rate at which the cosine or the cooldown ends."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if min(self.warmup_steps, self.cooldown_steps) < 0 or not 0 <= self.final_learning_rate_ratio <= 1:
            raise UserError(
                "warmup_steps and cooldown_steps must be at least 0 and final_learning_rate_ratio in [0, 1]"
            )
        if self.cooldown_steps and self.schedule != "constant":
            raise UserError("cooldown_steps needs the constant schedule, because the cosine decays anyway; set it to 0")

    def build(self, parameters: Iterable[nn.Parameter], global_batch: int, *, fused: bool = True) -> Optimizer:
        """Return the optimizer over `parameters`, in one group; raise `UserError` for an invalid class or options."""
        learning_rate = self.learning_rate * (global_batch if self.scale_learning_rate else 1)
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in self.options.items()}
        cls: type[Any] = _optimizer_class(self.class_path)
        if cls in (Adam, AdamW):
            options = {"fused": fused} | options
        try:
            optimizer = cls(parameters, lr=learning_rate, **options)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.class_path} does not accept these options: {error}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def schedule_step(self, optimizer: Optimizer, step: int, max_steps: int) -> float:
        """Set the learning rate of update number `step`, counted from 0, and return the rate of the first group."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step, max_steps)
        return float(optimizer.param_groups[0]["lr"])

    def factor(self, step: int, max_steps: int) -> float:
        """Return the fraction of the learning rate at `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        floor = self.final_learning_rate_ratio
        if self.schedule == "constant":
            left = (max_steps - step) / (self.cooldown_steps + 1) if self.cooldown_steps else 1.0
            return floor + (1 - floor) * min(max(left, 0.0), 1.0)
        progress = min((step - self.warmup_steps) / max(max_steps - self.warmup_steps, 1), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


_SHAPE_OF_STATE = ("amsgrad", "centered")
"""Options that determine the entries of an optimizer's state."""


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the moments with `load_state_dict`, each in its parameter's memory layout.

    The optimizer keeps its own options, so that a learning rate which the user has changed takes effect.

    Files hold contiguous rows, parameters may be channels-last, and a fused optimizer walks both in memory order.

    Raises:
        KeyError, TypeError, ValueError: The state does not belong to this optimizer.
    """
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name in _SHAPE_OF_STATE:
            if name in group and name in saved and bool(group[name]) != bool(saved[name]):
                raise ValueError(f"its optimizer had {name} {bool(saved[name])}, and this one has {bool(group[name])}")
    configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        group.update(options)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.ndim == parameter.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"{name} must have its parameter's shape {tuple(parameter.shape)}, got {tuple(value.shape)}"
                )
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def optimizer_path(name: str) -> str:
    """Return the class path of an optimizer's name in any case, such as `adamw`, or of its class path.

    Raises:
        UserError: No optimizer has this name.
    """
    for path in _exported():
        if name.lower() in (path.lower(), path.rpartition(".")[2].lower()):
            return path
    return full_name(OPTIMIZERS.by_short_name(name) or OPTIMIZERS.of_path(name))


def _optimizer_class(class_path: str) -> type[Optimizer]:
    return _exported().get(class_path) or OPTIMIZERS.of_path(class_path)


def _exported() -> dict[str, type[Optimizer]]:
    """Return the optimizers that torch.optim exports, by class path."""
    found = {f"torch.optim.{name}": item for name, item in vars(torch.optim).items() if isinstance(item, type)}
    return {path: item for path, item in found.items() if issubclass(item, Optimizer) and item is not Optimizer}
