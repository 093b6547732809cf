"""Short names of the compared models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ldm_ae.core.errors import UserError

_PARTS_OF_A_MODEL = ("model", "ema", "vae", "vqvae", "movq")
"""Names of folders that say nothing about the model inside."""


def split_name(text: str) -> tuple[str, str]:
    """Return the name and the model of `NAME=MODEL`; the name is empty where there is none, or where the whole text is
    a path.

    Raises:
        UserError: There is nothing after the equals sign.
    """
    name, equals, model = text.partition("=")
    if not equals or not name or "/" in name or Path(text).exists():
        return "", text
    if not model:
        raise UserError(f"{text} names no model; give {name}=MODEL")
    return name, model


def display_names(models: Sequence[tuple[str, str]]) -> list[str]:
    """Return a short name of each model that no other one has.

    Args:
        models: A given name, or an empty string, and the model as the user wrote it.

    Returns:
        The given names, and for the others as many of the last parts of their paths as tell them apart. Equal models
        get a number.

    Raises:
        UserError: A name is given twice.
    """
    given = Counter(name for name, _ in models if name)
    if twice := [name for name, times in given.items() if times > 1]:
        raise UserError(f"the name {twice[0]} is given to {given[twice[0]]} models; give each another one")
    parts = [_parts(model) for name, model in models if not name]
    shorts = iter(_shortest(own, parts) for own in parts)
    found: list[str] = []
    for name, _ in models:
        wanted = name or next(shorts)
        number, free = 1, wanted
        while not name and (free in found or free in given):
            number += 1
            free = f"{wanted} ({number})"
        found.append(free)
    return found


def _parts(model: str) -> list[str]:
    parts = [part for part in PurePosixPath(model.removeprefix("hf:")).parts if part not in ("/", ".", "..")]
    if parts and (stem := parts[-1].removesuffix(".safetensors")):
        parts[-1] = stem
    return parts or [model]


def _shortest(own: list[str], others: Sequence[list[str]]) -> str:
    """Return the fewest last parts of a path that no other one ends with, without the folders of a model at its end
    where it is told apart without them."""
    trimmed = own
    while len(trimmed) > 1 and trimmed[-1] in _PARTS_OF_A_MODEL:
        trimmed = trimmed[:-1]
    for path in (trimmed, own):
        for count in range(1, len(path) + 1):
            end = path[-count:]
            same = [other for other in others if other != own and _has(other, end)]
            if not same:
                return "/".join(end)
    return "/".join(own)


def _has(path: list[str], end: list[str]) -> bool:
    """Return whether a path ends with these parts, also in front of a model's folders."""
    while path:
        if path[-len(end) :] == end:
            return True
        if path[-1] not in _PARTS_OF_A_MODEL:
            return False
        path = path[:-1]
    return False
