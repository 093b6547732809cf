"""The weight files of a model folder, here or on the hub: one file or shards, full precision or a variant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ldm_ae.core.errors import UserError, printable
from ldm_ae.io.files import require_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
_STEM = "diffusion_pytorch_model"
_VARIANT = re.compile(rf"{_STEM}(?:\.(?P<file>\w+)\.safetensors|\.safetensors\.index\.(?P<index>\w+)\.json)", re.ASCII)
_PREFERENCE = ("fp32", "fp16", "bf16", "ema")
"""Variants in the order in which they are chosen; others follow in alphabetical order, and `non_ema` is the last."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The weight files that are read from a folder."""

    variant: str | None
    """diffusers' `variant`; None for files without one, which are preferred."""
    patterns: tuple[str, ...]
    """Names of these files, and patterns of the names of shards."""
    index: str | None
    """Name of the index of shards; None for a single file."""


def weight_files(names: Iterable[str]) -> WeightFiles | None:
    """Return the files to read among the names in a folder; None if there are no safetensors weights."""
    present = set(names)
    found = {(match["file"] or match["index"]) for name in present if (match := _VARIANT.fullmatch(name))}
    ranks = {name: place for place, name in enumerate(_PREFERENCE)} | {"non_ema": len(_PREFERENCE) + 1}
    for variant in (None, *sorted(found, key=lambda name: (ranks.get(name, len(_PREFERENCE)), name))):
        file = WEIGHTS if variant is None else f"{_STEM}.{variant}.safetensors"
        index = _INDEX if variant is None else f"{WEIGHTS}.index.{variant}.json"
        if file in present:
            return WeightFiles(variant=variant, patterns=(file,), index=index if index in present else None)
        if index in present:
            middle = "" if variant is None else f".{variant}"
            shards = (f"{_STEM}{middle}-*-of-*.safetensors", f"{_STEM}-*-of-*{middle}.safetensors")
            return WeightFiles(variant=variant, patterns=(index, *dict.fromkeys(shards)), index=index)
    return None


def require_weights(folder: Path) -> WeightFiles:
    """Return the weight files of a model folder.

    Raises:
        UserError: There are none, or a shard is missing.
    """
    found = weight_files(path.name for path in folder.iterdir())
    if found is None:
        raise UserError(f"{folder} has a config.json but no weights ({WEIGHTS}); pickled weights are not read")
    if found.index is not None:
        _check_shards(folder, folder / found.index)
    return found


def _check_shards(folder: Path, index: Path) -> None:
    content = require_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} is not an index of weights: expected a weight_map from names to files")
    names = sorted(set(places.values()))
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names '{printable(name)}': expected a safetensors file in the same folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} has {len(names) - len(missing)} of {len(names)} shards: {printable(missing[0])} is missing; "
            "download it again"
        )
