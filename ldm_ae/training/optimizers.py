"""Optimizers by class path, and the learning rate over steps."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import Registry, full_name
from ldm_ae.training.muon import BY, MuonAdam
from ldm_ae.training.parameter_groups import Divided, ParameterGroup, divide

OPTIMIZERS: Registry[Optimizer] = Registry("torch.optim", Optimizer, "optimizer")
"""The optimizers of torch and of plugins by their names."""
_OWN = {"muon": MuonAdam}
"""Our optimizers by short name."""
_PACKAGES = ("schedulefree",)
"""Packages of optimizers that a configuration may name by class path, each an extra of this package."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One network's optimizer and its learning rate."""

    class_path: str = "torch.optim.Adam"
    """Optimizer of torch.optim or of a plugin, by name (adam, adamw, sgd) or class path; `optimizer: adamw` sets it
    too. `muon` updates hidden matrices by Muon and the others by AdamW; schedulefree.AdamWScheduleFree needs the extra
    schedulefree."""
    learning_rate: float = 1e-4
    """Highest learning rate, after warm-up."""
    scale_learning_rate: bool = False
    """Multiply the learning rate by the global batch size, as LDM's recipes do."""
    options: dict[str, Any] = field(default_factory=lambda: {"betas": [0.5, 0.9]})
    """Further arguments of the class, such as betas, eps, weight_decay. Adam and AdamW default to fused."""
    groups: list[ParameterGroup] = field(default_factory=list)
    """Settings of parameters by name pattern: a list of {patterns, learning_rate_ratio, options}. All groups that a
    parameter matches apply, in order."""
    decay_norms_and_biases: bool = True
    """Apply weight_decay to norms and biases too; false exempts all parameters with one value for each channel."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or a cosine decay to `final_learning_rate_ratio` at the last step."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly from 0."""
    cooldown_steps: int = 0
    """Number of last steps over which the constant schedule's learning rate falls linearly (arXiv 2405.18392). A run
    that resumes before them with a larger `max_steps` equals one that was started with that number."""
    cooldown_minutes: float = 0.0
    """The same for a run that `training.max_minutes` ends: its last minutes."""
    final_learning_rate_ratio: float = 0.0
    """Fraction of the learning rate at which the cosine or a cooldown ends."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be above 0")
        least = min(self.warmup_steps, self.cooldown_steps, self.cooldown_minutes)
        if least < 0 or not 0 <= self.final_learning_rate_ratio <= 1:
            raise UserError(
                "warmup_steps, cooldown_steps and cooldown_minutes must be at least 0 and final_learning_rate_ratio in "
                "[0, 1]"
            )
        for name in ("cooldown_steps", "cooldown_minutes"):
            if getattr(self, name) and self.schedule != "constant":
                raise UserError(f"{name} needs the constant schedule, because the cosine decays anyway; set it to 0")

    def build(
        self, parameters: Iterable[nn.Parameter] | Mapping[str, nn.Parameter], global_batch: int, *, fused: bool = True
    ) -> Optimizer:
        """Return the optimizer over `parameters`, in one group unless the configuration has several.

        Args:
            parameters: Trainable parameters; by name for patterns of names.
            global_batch: Number of images of a step.
            fused: Whether torch's fused implementation may be used.

        Raises:
            UserError: An invalid class, invalid options, or a pattern that matches no parameter.
        """
        named = parameters if isinstance(parameters, Mapping) else {str(i): p for i, p in enumerate(parameters)}
        cls: type[Any] = _optimizer_class(self.class_path)
        options = _as_arguments(self.options)
        if cls in (Adam, AdamW, MuonAdam):
            options = {"fused": fused} | options
        divided = divide(named, self.groups, decay_norms_and_biases=self.decay_norms_and_biases)
        learning_rate = self.learning_rate * (global_batch if self.scale_learning_rate else 1)
        optimizer = self._construct(cls, divided, learning_rate, options)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        if averages_weights(cls):
            optimizer.train()  # type: ignore[attr-defined]
        return optimizer

    def _construct(
        self, cls: type[Any], divided: list[Divided], learning_rate: float, options: dict[str, Any]
    ) -> Optimizer:
        try:
            # One plain group has no names in its state, as in the checkpoints of runs without groups.
            if len(divided) == 1 and divided[0].is_plain and cls is not MuonAdam:
                alone: Optimizer = cls(divided[0].parameters.values(), lr=learning_rate, **options)
                return alone
            entries = []
            for part in divided:
                own = _as_arguments(part.options)
                cls([next(iter(part.parameters.values()))], lr=learning_rate, **(options | own))  # to check the values
                rate = learning_rate * part.learning_rate_ratio
                entries.append({"params": list(part.parameters.items()), "lr": rate, **own})
            optimizer: Optimizer = cls(entries, lr=learning_rate, **options)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.class_path} does not accept these options: {error}") from error
        for name in {name for part in divided for name in part.options} - optimizer.defaults.keys():
            raise UserError(f"'{name}' is an option of a whole {cls.__name__}; move it from groups to options")
        if not self.decay_norms_and_biases and not any(group["weight_decay"] for group in optimizer.param_groups):
            raise UserError(
                "decay_norms_and_biases false has no effect without weight decay; remove it or set options.weight_decay"
            )
        return optimizer

    def averages_weights(self) -> bool:
        """Return whether the optimizer averages the weights itself, as a schedule-free one."""
        return averages_weights(_optimizer_class(self.class_path))

    def check_time(self, name: str, max_minutes: float | None) -> None:
        """Check the schedule of the optimizer `name` against `training.max_minutes`.

        Raises:
            UserError: The schedule counts steps to an end that time determines, or minutes to one that steps determine.
        """
        if max_minutes is None:
            if self.cooldown_minutes:
                raise UserError(
                    f"{name}.cooldown_minutes has no effect without training.max_minutes; set that, or use "
                    f"{name}.cooldown_steps"
                )
        elif self.schedule != "constant" or self.cooldown_steps:
            setting = f"cooldown_steps {self.cooldown_steps}" if self.cooldown_steps else f"schedule {self.schedule}"
            raise UserError(
                f"{name}.{setting} counts steps, but training.max_minutes ends the run; use the schedule constant "
                f"with {name}.cooldown_steps 0 and {name}.cooldown_minutes"
            )
        elif self.cooldown_minutes > max_minutes:
            raise UserError(
                f"{name}.cooldown_minutes is {self.cooldown_minutes:g}; it must be at most training.max_minutes, "
                f"{max_minutes:g}"
            )

    def schedule_step(
        self, optimizer: Optimizer, step: int, max_steps: int, minutes_left: float | None = None
    ) -> float:
        """Set the learning rate of update number `step`, counted from 0, and return the rate of the first group."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step, max_steps, minutes_left)
        return float(optimizer.param_groups[0]["lr"])

    def factor(self, step: int, max_steps: int, minutes_left: float | None = None) -> float:
        """Return the fraction of the learning rate at `step`, counted from 0.

        Args:
            step: Number of updates done.
            max_steps: Number of updates of the run.
            minutes_left: Minutes until time ends the run; None where the steps do.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        floor = self.final_learning_rate_ratio
        if self.schedule == "constant":
            left = (max_steps - step) / (self.cooldown_steps + 1) if self.cooldown_steps else 1.0
            if minutes_left is not None and self.cooldown_minutes:
                left = minutes_left / self.cooldown_minutes
            return floor + (1 - floor) * min(max(left, 0.0), 1.0)
        progress = min((step - self.warmup_steps) / max(max_steps - self.warmup_steps, 1), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def averages_weights(cls: type[Optimizer]) -> bool:
    """Return whether an optimizer's `eval()` turns the parameters into their average, and `train()` back."""
    return all(callable(getattr(cls, name, None)) for name in ("train", "eval"))


def describe_groups(optimizer: Optimizer) -> list[str]:
    """Return a line about each group of parameters: their number, their values, and what distinguishes the group."""
    options = _arguments_of(type(optimizer)) - {"lr"}
    lines = []
    for group in optimizer.param_groups:
        values = sum(parameter.numel() for parameter in group["params"])
        method = f" by {group[BY]}" if BY in group else ""
        settings = {"learning_rate": group["initial_lr"]} | {
            name: group[name]
            for name, default in optimizer.defaults.items()
            if name in options and group[name] != default
        }
        words = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in settings.items())  # fmt: skip
        lines.append(f"{len(group['params'])} parameters ({values:,} values){method}: {words}")
    return lines


_SHAPE_OF_STATE = ("amsgrad", "centered")
"""Options that determine the entries of an optimizer's state."""


def _as_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the moments with `load_state_dict`, each in its parameter's memory layout.

    The optimizer keeps its own options, so that a learning rate which the user has changed takes effect. What a group
    counts itself, as a schedule-free optimizer does, is restored.

    Files hold contiguous rows, parameters may be channels-last, and a fused optimizer walks both in memory order.

    Raises:
        KeyError, TypeError, ValueError: The state does not belong to this optimizer.
    """
    _check_groups(optimizer, state["param_groups"])
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name in _SHAPE_OF_STATE:
            if name in group and name in saved and bool(group[name]) != bool(saved[name]):
                raise ValueError(f"its optimizer had {name} {bool(saved[name])}, and this one has {bool(group[name])}")
    configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    counted = {"initial_lr", *_arguments_of(type(optimizer))}
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        group.update({name: value for name, value in options.items() if name in counted or name not in group})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.ndim == parameter.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"{name} must have its parameter's shape {tuple(parameter.shape)}, got {tuple(value.shape)}"
                )
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_groups(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    """Raise `ValueError` if the groups of a saved optimizer have other members."""
    fix = "groups keep their members during a run: restore optimizer.groups and decay_norms_and_biases"
    if len(saved) != len(optimizer.param_groups):
        now = len(optimizer.param_groups)
        raise ValueError(f"its optimizer had {len(saved)} groups of parameters, and this one has {now}; {fix}")
    for mine, theirs in zip(optimizer.param_groups, saved, strict=True):
        names, before = mine.get("param_names"), theirs.get("param_names")
        if names is not None and before is not None and names != before:
            moved = sorted({*names} ^ {*before}) or names
            raise ValueError(f"{moved[0]} was in another group of its optimizer; {fix}")


def _arguments_of(cls: type[Any]) -> set[str]:
    """Return the names of a class's options; other entries of its groups are its own counts."""
    return {name for base in cls.__mro__ if "__init__" in vars(base) for name in inspect.signature(base).parameters}


def optimizer_path(name: str) -> str:
    """Return the class path of an optimizer's name in any case, such as `adamw`, or of its class path.

    Raises:
        UserError: No optimizer has this name.
    """
    if (own := _OWN.get(name.lower())) is not None:
        return full_name(own)
    for path in _exported():
        if name.lower() in (path.lower(), path.rpartition(".")[2].lower()):
            return path
    return full_name(OPTIMIZERS.by_short_name(name) or _of_package(name) or OPTIMIZERS.of_path(name))


def _optimizer_class(class_path: str) -> type[Optimizer]:
    return _exported().get(class_path) or _of_package(class_path) or OPTIMIZERS.of_path(class_path)


def _of_package(class_path: str) -> type[Optimizer] | None:
    """Return an optimizer of one of `_PACKAGES`; None for any other name."""
    package, _, rest = class_path.partition(".")
    if package not in _PACKAGES:
        return None
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{class_path} needs the package {package}, which is not installed: pip install 'ldm_ae[{package}]'"
        ) from error
    found = {full_name(cls): cls for cls in _optimizers_in(module) if "Closure" not in cls.__name__}
    for path, cls in found.items():
        if class_path in (path, f"{package}.{cls.__name__}"):
            return cls
    names = ", ".join(f"{package}.{cls.__name__}" for cls in found.values())
    raise UserError(f"the package {package} has no optimizer {rest or package}; there are {names}")


def _exported() -> dict[str, type[Optimizer]]:
    """Return our optimizers and those that torch.optim exports, by class path."""
    found = {f"torch.optim.{cls.__name__}": cls for cls in _optimizers_in(torch.optim)}
    return found | {full_name(cls): cls for cls in _OWN.values()}


def _optimizers_in(module: ModuleType) -> list[type[Optimizer]]:
    """Return the optimizers that a module exports."""
    found = [item for item in vars(module).values() if isinstance(item, type)]
    return [item for item in found if issubclass(item, Optimizer) and item is not Optimizer]
