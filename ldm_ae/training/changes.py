"""The settings that a resumed run may change, and those that it may not.

The *identity* of a run is everything that a resumed run must share with it: the networks, the regularizer, their
optimizers, the parameters that learn, the images and their order. A checkpoint with another identity is refused, and
the message names the difference. Every other setting takes effect from the step at which the run resumes; changed
settings are printed and logged there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldm_ae.core.deprecation import rename_keys
from ldm_ae.core.errors import UserError, printable
from ldm_ae.data import Source
from ldm_ae.training.configuration.keys import RENAMED

CONFIG = "config.yaml"
"""The resolved configuration in a run directory."""
_OF_THE_COMMAND = ("out", "config")
_OF_A_RUN = (CONFIG, "checkpoints", "metrics.jsonl", "environment.json", "model")
_LOGS = (".log", ".txt", ".out", ".err")
"""Suffixes of files that a shell or a scheduler writes, possibly into the run directory."""
_ABSENT = "(not set)"
_BEFORE = {"data.colour_profiles": '"ignore"'}
"""The values that older runs used before these keys existed, where they differ from the key's default."""
_UNRECORDED = {
    "regularizer": "Identity",
    "bucket_assignment": "one size",
    "power_ema": "off",
    "learned_scale": "none",
}
"""The values of keys that an identity lacks, such as an identity that an older version recorded."""


def hash_images(source: Source) -> str:
    """Return the number of images and a hash of their keys, and of their sizes where these are cheap to read.

    Other images, or the same images in another order, are another data set.
    """
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.key(index).encode("utf-8", "surrogateescape") + b"\0%d\0" % (source.bytes_of(index) or 0))
    return f"{len(source)} images, names and sizes {digest.hexdigest()[:16]}"


def check_identity(
    folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any], remedies: Mapping[str, str] | None = None
) -> None:
    """Raise `UserError` that names the first difference. Keys that an older version did not record are not compared.

    Args:
        folder: The run directory.
        saved: The identity in its checkpoint.
        now: The identity of this command.
        remedies: The fix for a difference in a key, where it is not the usual one.
    """
    saved, now = _UNRECORDED | dict(saved), _UNRECORDED | dict(now)
    usual = "give another --out, or the configuration that the run was started with"
    for key, value in now.items():
        if key not in saved or saved[key] == value:
            continue
        before, after = (_difference(saved[key], value), _difference(value, saved[key]))
        raise UserError(
            f"{folder} holds a run with another {key} ({printable(before)}, now {printable(after)}); "
            f"{(remedies or {}).get(key, usual)}"
        )


def remedies(folder: Path, *, global_batch: int, batch_size: int, processes: int) -> dict[str, str]:
    """Return the fix for each key where a resumed run has another batch size or other images.

    Args:
        folder: The run directory.
        global_batch: Images of one step of the existing run.
        batch_size: Images of one forward pass, as this command requests.
        processes: Number of processes of this command.
    """
    found = {
        "bucket_assignment": "give the images, data.sizes and data.area that the run was started with, or another "
        "--out",
        "data": "give the images that the run was started with; or give another --out, with "
        f"--model.init_args.pretrained {folder / 'model'} to start from the weights of this run",
    }
    per_process, remainder = divmod(global_batch, processes)
    if remainder:
        found["global_batch"] = f"start a number of processes that divides {global_batch}, not {processes}"
    else:
        size = max(size for size in range(1, min(batch_size, per_process) + 1) if per_process % size == 0)
        found["global_batch"] = (
            "the images of a step are batch_size x accumulation x processes; keep their number with "
            f"--training.batch_size {size} --training.accumulation {per_process // size}, or give another --out"
        )
    return found


def other_discriminator(folder: Path, changed: Mapping[str, tuple[str, str]], error: UserError) -> UserError:
    """Return the refusal of a checkpoint whose discriminator has another layout; it names the changed settings."""
    mine = [f"{key} {before}, now {now}" for key, (before, now) in changed.items() if key.startswith("discriminator.")]
    if not mine:
        return error
    return UserError(
        f"{folder} holds a run with another discriminator ({printable('; '.join(mine))}); give another --out, or the "
        "configuration that the run was started with"
    )


def _difference(value: Any, other: Any) -> str:
    """Return the entries of `value`, JSON of a dictionary, that `other` lacks; or `value` itself."""
    mine, theirs = _entries(value), _entries(other)
    if mine is None or theirs is None:
        return str(value)
    return ", ".join(f"{key}={entry}" for key, entry in mine.items() if theirs.get(key, _ABSENT) != entry)


def _entries(value: Any) -> dict[str, Any] | None:
    """Return a dictionary that is recorded as JSON; None for anything else."""
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_place(folder: Path, images: Sequence[str | None]) -> None:
    """Raise `UserError` for a run directory that holds something other than a run, or lies among the run's images."""
    for location in images:
        if location and Path(location).is_dir() and folder.resolve().is_relative_to(Path(location).resolve()):
            raise UserError(
                f"--out {folder} is inside the image folder {location}, where the run's sample grids would be read as "
                "images; give another --out"
            )
    if not folder.is_dir() or any((folder / name).exists() for name in _OF_A_RUN):
        return
    found = [
        path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.suffix not in _LOGS
    ]
    if found:
        raise UserError(
            f"{folder} holds files that are not a run's ({printable(found[0])}); give a new folder or a run as --out"
        )


def saved_config(folder: Path) -> dict[str, Any] | None:
    """Return the configuration that a run directory was last started with; None for a new run.

    Raises:
        UserError: The configuration is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); remove it or restore it from a copy"
        ) from error
    if not isinstance(found, dict):
        return {}
    rename_keys(found, RENAMED)
    if isinstance(training := found.get("training"), dict) and training.get("precision") == "no":
        training["precision"] = "fp32"  # an older version recorded Accelerate's name
    return found


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the old and new JSON value of each changed key. New keys of a newer version do not count as changes."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    old = {key: value for key, value in _BEFORE.items() if key in new} | old
    changed = {}
    for key in dict.fromkeys([*old, *new]):
        if key.split(".")[0] in _OF_THE_COMMAND or old.get(key, _ABSENT) == new.get(key, _ABSENT):
            continue
        if key not in old and not _is_users(key) and not _replaces(key, old):
            continue  # a setting that the version which began the run did not have
        changed[key] = old.get(key, _ABSENT), new.get(key, _ABSENT)
    return changed


def _is_users(key: str) -> bool:
    """Return whether a key stands in a dictionary whose keys the user chooses."""
    return any(f".{name}." in f".{key}" for name in ("options", "regularization_weights", "regularization_schedules"))


def _replaces(key: str, old: Mapping[str, str]) -> bool:
    return any(key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in old)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str)
