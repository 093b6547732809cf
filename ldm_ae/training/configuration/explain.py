"""jsonargparse's messages in one or two lines: the place, the key, what was expected, what was given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

from ldm_ae.core.errors import UserError, printable
from ldm_ae.core.registry import PLUGINS, unknown_name
from ldm_ae.training.configuration.config_file import ConfigFile, known_names
from ldm_ae.training.configuration.full_names import REGISTRIES
from ldm_ae.training.configuration.hints import hint
from ldm_ae.training.configuration.keys import config_keys, of_phase
from ldm_ae.training.configuration.spelling import options
from ldm_ae.training.parameter_groups import ParameterGroup

_KEY = re.compile(r'Parser key "([^"]+)"')
_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'")
_EXPECTED = re.compile(r"Expected an? (.+?)\. Got value: (.*)")
_UNION = re.compile(r"Subtypes: \[(.*?)\] Errors: .* Given value: (.*)")
_UNREGISTERED = re.compile(r"Importing '([^']+)' is not allowed|Expected a dot import path string: (\S+)")
_REQUIRED = re.compile(r"arguments are required: (.+)|Key '?\"?([\w.]+)'?\"? is required")


def explain(
    error: Exception, files: Sequence[ConfigFile], arguments: Sequence[str], phase: int | None = None
) -> UserError:
    """Return the refusal of a configuration, or of that of a phase, that jsonargparse refused with `error`."""
    prefix = "" if phase is None else of_phase(phase)
    text = " ".join(str(error).split())
    last = _end_of_keys(text)
    parts = _KEY.findall(text)
    key = ""
    for part in parts:  # a class inside a class is under `init_args`, a key inside a group in full
        key = part if not key or part.startswith(f"{key}.") else _inside(key, part)
    place = _place(f"{prefix}{key}".rstrip("."), files, arguments)
    if (match := _UNREGISTERED.search(text)) and parts and parts[-1].rpartition(".")[2] in REGISTRIES:
        return UserError(_unregistered(f"{prefix}{key}", place, match[1] or match[2]))
    if match := _UNKNOWN.search(text):
        name = match[1] or match[2]
        if _is_list(key):
            known = ", ".join(field.name for field in fields(ParameterGroup))
            return UserError(f"{place}{prefix}{key}: an entry has no key '{printable(name)}'; expected some of {known}")
        full = prefix + (_inside(key, name) if key else name)
        return UserError(f"{place}no key is named '{printable(full)}'{hint(full, known_names(full))}")
    if (match := _REQUIRED.search(text)) and (missing := match[1] or match[2]):
        if _is_list(key):
            return UserError(f"{place}{prefix}{key}: an entry has no {missing}; add it, as in {{patterns: ['*.bias']}}")
        return UserError(f"required, but not given: {', '.join(f'--{name.strip()}' for name in missing.split(','))}")
    if key and (match := _UNION.search(text, last) or _EXPECTED.search(str(error), _end_of_keys(str(error)))):
        return UserError(
            f"{place}{prefix}{key}: expected {_types(match[1])}, got {printable(match[2], 120) or 'nothing'}"
        )
    where = "" if phase is None else f"phase {phase}: "
    return UserError(place + where + printable(re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text), 400))


def _inside(key: str, name: str) -> str:
    """Return the full key of an argument of the class, or of a key of the entries of the list, that `key` holds."""
    return f"{key}.{name}" if _is_list(key) else f"{key}.init_args.{name}"


def _is_list(key: str) -> bool:
    """Return whether a key holds a list of groups of parameters."""
    return config_keys().get(key) == f"list[{ParameterGroup.__name__}]"


def _place(key: str, files: Sequence[ConfigFile], arguments: Sequence[str]) -> str:
    """Return `FILE, line N: ` where the last file that has the key gave its value; nothing for the command line."""
    plain = _without_init_args(key)
    for option in (_without_init_args(option) for option, _ in options(arguments)):
        if not key or f"{plain}.".startswith(f"{option}.") or option.startswith(f"{plain}."):
            return ""
    for file in reversed(files):
        if (place := file.place(key)) is not None:
            return f"{place}: "
    return ""


def _without_init_args(key: str) -> str:
    """Return a key as the command line may have it: `model.latent_channels` is `model.init_args.latent_channels`."""
    return key.replace(".init_args", "")


def _end_of_keys(text: str) -> int:
    """Return where the innermost key ends, after which its own problem stands."""
    return max((match.end() for match in _KEY.finditer(text)), default=0)


def _unregistered(key: str, place: str, name: str) -> str:
    registry = REGISTRIES[key.rpartition(".")[2]]
    if name.rpartition(".")[2] == registry.base.__name__:  # an argument of a class that is not chosen yet
        known = ", ".join(cls.__name__ for cls in registry.classes())
        return f"{place}{key} has arguments, but no class; choose it first: --{key} NAME, one of {known}"
    refusal = unknown_name(registry.kind, name, [cls.__name__ for cls in registry.classes()])
    return f"{place}{key}: {refusal}\na class of another package needs an entry point of the group {PLUGINS}"


def _types(text: str) -> str:
    """Return Python's notation of types in words: `<class 'int'>` as int, a Literal as its values, None as null."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"(?:typing\.)?Literal\[([^\]]*)\]", lambda match: match[1].replace("'", ""), text)
    words = [word.replace("NoneType", "null") for word in text.split(", ")]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
