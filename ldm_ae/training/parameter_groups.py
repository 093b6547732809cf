"""Groups of parameters with options of their own, by name pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from ldm_ae.core.errors import UserError, printable

Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Settings of the parameters whose names match a pattern."""

    patterns: list[str]
    """Shell patterns of whole names, such as *.bias, *norm*, encoder.*."""
    learning_rate_ratio: float = 1.0
    """Factor of the learning rate of these parameters, in addition to the schedule."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the optimizer's class that replace the others for these parameters, such as weight_decay."""

    def __post_init__(self) -> None:
        if not self.patterns:
            raise UserError("a group of parameters needs patterns, such as ['*.bias']")
        if self.learning_rate_ratio <= 0:
            raise UserError(
                f"learning_rate_ratio is {self.learning_rate_ratio}; it must be above 0 (training.trainable freezes "
                "parameters)"
            )


class Divided(NamedTuple):
    """Parameters that get the same settings."""

    parameters: dict[str, nn.Parameter]
    learning_rate_ratio: float
    options: dict[str, Any]

    @property
    def is_plain(self) -> bool:
        """Whether they have no settings of their own."""
        return not self.options and self.learning_rate_ratio == 1.0


class _Entry(NamedTuple):
    matches: Callable[[str, nn.Parameter], bool]
    learning_rate_ratio: float
    options: dict[str, Any]


def divide(parameters: Parameters, groups: Sequence[ParameterGroup], *, decay_norms_and_biases: bool) -> list[Divided]:
    """Divide parameters by the groups that they match, first those that match none.

    A parameter gets the settings of every group that it matches, in order: a later option replaces an earlier one, and
    the ratios of the learning rate are multiplied.

    Args:
        parameters: Trainable parameters by name.
        groups: The groups.
        decay_norms_and_biases: False begins with a group of all norms and biases, with `weight_decay` 0.

    Raises:
        UserError: A pattern matches no parameter.
    """
    entries = [] if decay_norms_and_biases else [_Entry(_is_norm_or_bias, 1.0, {"weight_decay": 0.0})]
    for group in groups:
        for pattern in group.patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise UserError(_no_match(pattern, list(parameters)))
        entries.append(_Entry(_matcher(group.patterns), group.learning_rate_ratio, group.options))
    found: dict[tuple[int, ...], dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        matched = tuple(i for i, entry in enumerate(entries) if entry.matches(name, parameter))
        found.setdefault(matched, {})[name] = parameter
    divided = []
    for matched in sorted(found):
        ratio, options = 1.0, dict[str, Any]()
        for i in matched:
            ratio *= entries[i].learning_rate_ratio
            options |= entries[i].options
        divided.append(Divided(found[matched], ratio, options))
    return divided


def _matcher(patterns: Sequence[str]) -> Callable[[str, nn.Parameter], bool]:
    return lambda name, _: any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_norm_or_bias(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter has one value for each channel: (C,), or (C, 1, 1) as in some normalizations."""
    del name
    return parameter.numel() == (parameter.shape[0] if parameter.ndim else 1)


def _no_match(pattern: str, names: list[str]) -> str:
    """Return the refusal of a pattern, with the nearest names."""
    near = get_close_matches(pattern.strip("*"), names, n=3, cutoff=0.4)
    if not near:
        near = sorted({f"{name.split('.')[0]}.*" for name in names})[:6]
    return (
        f"the pattern '{printable(pattern)}' of a parameter group matches no trainable parameter; a pattern must match "
        f"whole names, such as {', '.join(near)}"
    )
