"""The phases of a configuration: what each of them sets otherwise than the rest of the recipe.

A phase is read as a further file after the recipe, as in `--config RECIPE --config PHASE`: its keys override the
recipe's, and the command line overrides both. `--training.max_steps 100` therefore holds in every phase, and
`--phases.2.training.max_steps 100`, which overrides that, in the second one.

A configuration that was parsed, and the `config.yaml` of a run, list the differences of each phase from the recipe; the
functions on such trees need no parser.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace, get_loader

from ldm_ae.core.errors import UserError, printable
from ldm_ae.training.configuration.keys import OF_THE_RUN, PHASES, config_keys, of_phase

Tree = dict[str, Any]

_OPTION = re.compile(rf"--{PHASES}\.(\d+)\.(.+)", re.DOTALL)


class GivenPhases(NamedTuple):
    """A command line, taken apart."""

    files: list[str]
    """The arguments up to the last `--config FILE`, without those of phases."""
    options: list[str]
    """The other arguments without those of phases; they override the phases."""
    phases: list[Tree]
    """The content of each phase, of the last file that has some or of `--phases`."""
    of_phases: dict[int, list[str]]
    """`--phases.N.KEY VALUE` as `--KEY VALUE`, by the number of the phase."""


def given_phases(arguments: Sequence[str]) -> GivenPhases:
    """Take the phases out of a command line whose names have been checked.

    Raises:
        UserError: `--phases` is not a list of mappings, or an option is one of a phase that does not exist.
    """
    found = GivenPhases([], [], [], defaultdict(list))
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, _ = argument.partition("=")
        words = [argument] if equals or not rest or rest[0].startswith("--") else [argument, rest.pop(0)]
        value = argument[len(option) + 1 :] if equals else words[-1]
        if match := _OPTION.fullmatch(argument):
            found.of_phases[int(match[1])].extend([f"--{match[2]}", *words[1:]])
        elif option.removesuffix("+") == f"--{PHASES}":
            before = found.phases if option.endswith("+") else []
            found.phases[:] = [*before, *_listed(get_loader("yaml")(value))]
        else:
            if option == "--config" and (content := get_loader("yaml")(Path(value).read_text(encoding="utf-8"))):
                found.phases[:] = _listed(content[PHASES]) if PHASES in content else found.phases
                found.files.extend([*found.options, *words])
                found.options.clear()
            else:
                found.options.extend(words)
    for number, options in found.of_phases.items():
        if not 1 <= number <= len(found.phases):
            has = f"{len(found.phases)} phases, which count from 1" if found.phases else "no phases"
            raise UserError(f"--{of_phase(number)}{options[0][2:]}: the configuration has {has}")
    return found


def _listed(value: Any) -> list[Tree]:
    if not isinstance(value, list | None) or not all(isinstance(phase, dict) for phase in value or []):
        raise UserError(f"{PHASES}: expected a list of phases, each with its keys, got {printable(value, 120)}")
    return value or []


def check_shared(phases: Sequence[Mapping[str, Any]], places: Sequence[Callable[[str], str | None]]) -> None:
    """Raise `UserError` for a key that all phases share and one sets; `places` find a key's line in each file."""
    for number, phase in enumerate(phases, start=1):
        for key in (key for key in settings(phase) if key in OF_THE_RUN):
            place = next((found for place in reversed(places) if (found := place(of_phase(number, key)))), None)
            raise UserError(
                f"{'' if place is None else f'{place}: '}phase {number} sets {key}, which all phases of a run share; "
                "remove it, or set it outside of phases"
            )


def differences(recipe: Mapping[str, Any], phase: Mapping[str, Any]) -> Tree:
    """Return the settings of a phase's complete configuration that differ from the recipe's, as a tree."""
    theirs = settings(recipe)
    found: Tree = {}
    for key, value in settings(phase).items():
        if key not in theirs or theirs[key] != value:
            _set(found, key, value)
    return found


def full_tree(config: Namespace) -> Tree:
    """Return the values of a parsed configuration, null included, which `ArgumentParser.dump` leaves out."""
    return {name: _as_in_file(value) for name, value in vars(config).items()}


def _as_in_file(value: Any) -> Any:
    if isinstance(value, Namespace | dict):
        entries = vars(value) if isinstance(value, Namespace) else value
        return {name: _as_in_file(inner) for name, inner in entries.items()}
    if isinstance(value, list | tuple):
        return [_as_in_file(inner) for inner in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def each_phase(config: Mapping[str, Any]) -> list[Tree]:
    """Return the complete configuration of each phase; a configuration without phases is one."""
    recipe = {key: value for key, value in config.items() if key != PHASES}
    found = []
    for phase in config.get(PHASES) or [{}]:
        found.append(copy.deepcopy(recipe))
        for key, value in settings(phase).items():
            _set(found[-1], key, copy.deepcopy(value))
    return found


def settings(tree: Mapping[str, Any]) -> Tree:
    """Return the values of a tree by the full keys of a configuration, such as `training.max_steps`."""
    found = {}
    for key in config_keys():
        place: Any = tree
        *owners, name = key.split(".")
        for owner in owners:
            place = place.get(owner) if isinstance(place, Mapping) else None
        if isinstance(place, Mapping) and name in place:
            found[key] = place[name]
    return found


def _set(tree: Tree, key: str, value: Any) -> None:
    *owners, name = key.split(".")
    for owner in owners:
        tree = tree.setdefault(owner, {})
    tree[name] = value
