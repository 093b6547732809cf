"""Checks whether a store may be started or resumed in a folder, and cleanup of the folder where it may not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError, printable
from ldm_ae.core.shipped import version_of_hash
from ldm_ae.io.files import new_folder
from ldm_ae.io.locks import only_writer
from ldm_ae.latents.store.format import BUCKET_NAME, DESCRIPTION, StoreRequest, short
from ldm_ae.latents.store.records import WORK
from ldm_ae.models.scaling import SCALE

_FREE = ("source", "batch_size", "images", "keys_hash")
"""The fields of a request that may differ from the store's: the spelling of a path, settings that change at most the
last bits of a latent, and images, which are compared separately."""
_HASHES = {"transform_hash": "transform", "model_hash": "model_config"}
"""Hashes that a message omits where the fields that they cover differ too."""
_SHOWN = 4
_ABSENT = "(not set)"


@contextmanager
def claiming(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; remove a store that is started within the block and refused before it has a shard.

    Raises:
        UserError: Another process writes there, or the folder is not writable.
    """
    was_there = any((folder / name).exists() for name in (DESCRIPTION, WORK))
    with new_folder(folder), only_writer(folder):
        try:
            yield
        except UserError:
            if not was_there and not any(BUCKET_NAME.fullmatch(path.name) for path in folder.iterdir()):
                (folder / DESCRIPTION).unlink(missing_ok=True)
                shutil.rmtree(folder / WORK, ignore_errors=True)
            raise


def check_same_request(path: Path, recorded: Mapping[str, Any], request: StoreRequest) -> None:
    """Raise `UserError` that names each request field that differs from the store at `path`, with both values.

    Args:
        path: The store.
        recorded: The store's request, as JSON values.
        request: The current request.
    """
    ours = request.to_json() | asdict(request)
    fields = [name for name in ours if name not in _FREE and recorded.get(name) != ours[name]]
    fields = [name for name in fields if _HASHES.get(name) not in fields]
    if not fields:
        return
    different = [pair for name in fields for pair in _differences(name, recorded.get(name), ours[name])]
    shown = ", ".join(f"{name} {_short(before)} (now {_short(now)})" for name, before, now in different[:_SHOWN])
    more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    version = version_of_hash(str(recorded.get("model_hash")))
    model = (
        f" (its model: {version.advice})" if version is not None and version.model_hash != request.model_hash else ""
    )
    raise UserError(
        f"{path} is a store made with {shown}{more}; use the store's settings{model}, or give another folder for the "
        "store"
    )


def _differences(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, stored value and requested value of each entry that differs."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        yield name, before, now
        return
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if old != new:
            yield from _differences(f"{name}.{key}", old, new)


def _short(value: Any) -> str:
    return value if value is _ABSENT else printable(short(value))


def as_recorded(recorded: Mapping[str, Any], request: StoreRequest) -> StoreRequest:
    """Return `request` with the scale that a store has recorded, and without a field that older stores do not record.

    A scale describes how latents are read and changes none of them, so a store resumes with a model of other constants.
    """
    changed: dict[str, dict[str, Any]] = {}
    for part in ("scaling", "model_config"):
        theirs, ours = recorded.get(part), getattr(request, part)
        if isinstance(theirs, dict):
            changed[part] = ours | {key: theirs[key] for key in SCALE if key in ours and key in theirs}
    return replace(request, **changed, deterministic=bool(recorded.get("deterministic")))  # type: ignore[arg-type]
