"""A configuration file with the place of each key, so that a message can name the line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from ldm_ae.core.errors import UserError, printable
from ldm_ae.training.configuration.hints import hint
from ldm_ae.training.configuration.keys import (
    CLASS_KEYS,
    OPTIMIZER_KEYS,
    PHASES,
    class_arguments,
    config_keys,
    groups,
    is_known,
    of_phase,
    split_phase,
)


class ConfigFile:
    """The keys of one YAML file, by their full names such as `training.max_steps`.

    Raises:
        UserError: The file cannot be read, is not YAML, holds something other than keys with values, or has a key
            twice. The message gives line and column.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._nodes: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        try:
            root = yaml.compose(self.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
            why = " ".join(part for part in (error.context, error.problem) if part)
            raise UserError(f"{self.path}{where}: this is not valid YAML: {printable(why)}") from error
        except (UnicodeError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{self.path} is not a YAML file of UTF-8 text: {printable(why)}") from error
        except RecursionError as error:
            raise UserError(f"{self.path}: the configuration is nested too deeply") from error
        if root is None:  # an empty file, or comments alone
            return
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{self.path}{_at(root)}: expected keys with values (`seed: 0`), got {_kind(root)}")
        self._nodes = dict(self._walk(root, "", set()))

    def _walk(
        self, mapping: yaml.MappingNode, prefix: str, seen: set[int]
    ) -> Iterator[tuple[str, tuple[yaml.Node, yaml.Node]]]:
        """Yield the full name, the key's and the value's node of every key, each mapping once (aliases repeat them)."""
        seen.add(id(mapping))
        first: dict[str, yaml.Node] = {}
        for key, value in mapping.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else _kind(key)
            if name in first:
                raise UserError(
                    f"{self.path}{_at(key)}: {printable(prefix + name)} is there twice, first in line "
                    f"{first[name].start_mark.line + 1}; remove one of them"
                )
            first[name] = key
            yield f"{prefix}{name}", (key, value)
            if isinstance(value, yaml.MappingNode) and id(value) not in seen:
                yield from self._walk(value, f"{prefix}{name}.", seen)
            elif f"{prefix}{name}" == PHASES and not _is_null(value):
                yield from self._walk_phases(value, seen)

    def _walk_phases(self, phases: yaml.Node, seen: set[int]) -> Iterator[tuple[str, tuple[yaml.Node, yaml.Node]]]:
        """Yield the keys of every phase, as `phases.1.training.max_steps`."""
        if not isinstance(phases, yaml.SequenceNode):
            raise UserError(f"{self.path}{_at(phases)}: phases: expected a list of phases, got {_kind(phases)}")
        for number, phase in enumerate(phases.value, start=1):
            if not isinstance(phase, yaml.MappingNode):
                raise UserError(
                    f"{self.path}{_at(phase)}: phase {number}: expected keys with values, got {_kind(phase)}"
                )
            yield from self._walk(phase, of_phase(number), seen)

    def check_keys(self) -> None:
        """Raise `UserError` for the first unknown key, with its place, and for a group that has a value of its own."""
        for key, (node, value) in self._nodes.items():
            if key.rpartition(".")[2] != "<<" and not is_known(key):
                found = hint(key, known_names(key), dashes="")
                raise UserError(f"{self.path}{_at(node)}: no key is named '{printable(key)}'{found}")
            named = isinstance(value, yaml.ScalarNode) and value.tag in ("tag:yaml.org,2002:str", _NULL)
            plain = split_phase(key)[1]
            if plain in groups() and not named and not isinstance(value, yaml.MappingNode):
                given = _kind(value) if not isinstance(value, yaml.ScalarNode) else printable(value.value)
                example = f"{key}: {{class_path: torch.optim.AdamW}}" if plain in OPTIMIZER_KEYS else f"{key}: {{...}}"
                raise UserError(f"{self.path}{_at(value)}: {key} holds keys (`{example}`), got {given}")

    def place(self, key: str) -> str | None:
        """Return `FILE, line N` of a key's value, or of the nearest key that holds it; None if the file has neither."""
        while key and key not in self._nodes:
            key = key.rpartition(".")[0]
        if not key:
            return None
        return f"{self.path}, line {self._nodes[key][1].start_mark.line + 1}"


_NULL = "tag:yaml.org,2002:null"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def known_names(key: str) -> list[str]:
    """Return the names that an unknown key may be a misspelling of: arguments of classes, or else all keys, or those of
    its phase."""
    if any(part in CLASS_KEYS for part in key.split(".")[:-1]):
        return sorted(class_arguments())
    number, _ = split_phase(key)
    names = [*config_keys(), *sorted(groups())]
    return names if number is None else [of_phase(number, name) for name in names]


def _at(node: yaml.Node) -> str:
    return f", line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _kind(node: yaml.Node) -> str:
    kinds = {"sequence": "a list", "mapping": "a mapping", "scalar": "a single value"}
    return kinds[str(getattr(node, "id", "scalar"))]
