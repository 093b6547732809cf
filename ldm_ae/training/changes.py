"""What a run that is continued may change, and what it may not.

A run's *identity* is what its further course is a continuation of: the networks, their optimizers, which parameters
learn, the images and their order. A checkpoint with another identity is refused by name. Every other setting takes
effect from the step at which the run is continued; what has changed is printed and logged there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ldm_ae.data import Source
from ldm_ae.errors import UserError, printable

CONFIG = "config.yaml"
"""In a run directory: the resolved configuration."""
_OF_THE_COMMAND = ("out", "config")
_ABSENT = "(not set)"
_BEFORE = {"data.colour_profiles": '"ignore"'}
"""What runs did that were begun before these keys were there, where that is not the key's default."""


def hash_images(source: Source) -> str:
    """Their number and a hash of their keys: other images, or the same in another order, are another data set."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.key(index).encode("utf-8", "surrogateescape") + b"\0")
    return f"{len(source)} images, keys {digest.hexdigest()[:16]}"


def check_identity(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UserError that names the first difference. What an older version did not record is not compared."""
    for key, value in now.items():
        if key not in saved or saved[key] == value:
            continue
        before, after = (_difference(saved[key], value), _difference(value, saved[key]))
        raise UserError(
            f"{folder} holds a run with another {key} ({printable(before)}, now {printable(after)}); give another "
            "--out, or the configuration it was started with"
        )


def _difference(value: Any, other: Any) -> str:
    """The entries of `value`, JSON of a dictionary, that `other` has not; or `value` itself."""
    try:
        mine, theirs = json.loads(value), json.loads(other)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            return ", ".join(f"{key}={entry}" for key, entry in mine.items() if theirs.get(key, _ABSENT) != entry)
    except (TypeError, ValueError):
        pass
    return str(value)


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The configuration that a run directory was last started with; None for a run that is new.

    Raises:
        UserError: it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); remove it or put it back") from error
    return found if isinstance(found, dict) else {}


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """From and to of each key whose value is another one, as JSON. New keys of a newer version are no change."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    old = {key: value for key, value in _BEFORE.items() if key in new} | old
    changed = {}
    for key in dict.fromkeys([*old, *new]):
        if key.split(".")[0] in _OF_THE_COMMAND or old.get(key, _ABSENT) == new.get(key, _ABSENT):
            continue
        if key not in old and not any(key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in old):
            continue
        changed[key] = old.get(key, _ABSENT), new.get(key, _ABSENT)
    return changed


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str)
