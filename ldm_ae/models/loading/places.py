"""The place of MODEL: the folder or single file that a name denotes."""

from __future__ import annotations

import os
from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.core.nearest import nearest_name, nearest_path
from ldm_ae.core.resources import shipped_models
from ldm_ae.core.shipped import version_named, version_of_hash
from ldm_ae.io.hub_names import PREFIX, is_hub_name
from ldm_ae.models.loading.checkpoints import find_named

SUBFOLDERS = ("", "vae", "vqvae", "movq")
"""Folders of a repository that may hold its autoencoder: the top, or a pipeline's part, as diffusers names it."""
_MOST_NAMES = 6


def find_path(name: str | Path) -> Path:
    """Return the path that `name` denotes: an existing path, a shipped model, perhaps with its version
    (`kl-f8c4-small@1`), or a checkpoint by its name in a run.

    A path that does not exist and denotes none of these is returned as it is.

    Raises:
        UserError: `name` is `RUN@NAME`, and there is no such run, or no such valid checkpoint in it; or it is a version
            of a shipped model that there is not, or that this installation does not have.
    """
    path, run = Path(name), str(name).rpartition("@")[0]
    if str(name).startswith(PREFIX):
        return path
    if run and not path.exists() and not Path(run).exists() and (version := version_named(str(name))) is not None:
        if (folder := version.folder) is None:
            raise UserError(f"no such model: {version.advice}")
        return folder
    if (checkpoint := find_named(name)) is not None:
        return checkpoint
    return path if path.exists() else shipped_models().get(str(name), path)


def suggestion(path: Path) -> str:
    """Return a hint with the nearest existing names: a path, or a shipped model, or those that there are."""
    shipped = shipped_models()
    near = nearest_name(str(path), shipped) if len(path.parts) == 1 else None
    if (found := near or nearest_path(path)) is not None:
        return f"; did you mean {found}?"
    hint = ""
    if path.parent != Path(path.anchor or ".") and path.parent.is_dir() and os.access(path.parent, os.R_OK | os.X_OK):
        beside = sorted(item.name for item in path.parent.iterdir() if item.is_dir() and item.name[0] != ".")
        some = [*beside[:_MOST_NAMES], *(["..."] if len(beside) > _MOST_NAMES else [])]
        hint = f"; {path.parent} has {', '.join(some)}" if some else ""
    elif len(path.parts) > 1 and not Path(path.parts[0]).exists():
        hint = f"; there is no folder {path.parts[0]}"
    may_be_on_hub = len(path.parts) == 2 and path.parent.is_dir() and not path.is_absolute()
    hub = f"; on the Hugging Face hub it would be {PREFIX}{path}" if may_be_on_hub else ""
    return f"{hint}; the shipped models are {', '.join(shipped)}{hub}"


def model_place(name: str | Path) -> Path:
    """Return the diffusers folder or single file that MODEL denotes; averaged (EMA) weights precede raw ones.

    A file denotes itself, as a model folder does, a pipeline its `vae/`, a checkpoint its `ema/` (`model/` without
    EMA), a run its newest exported `model/`, and `RUN@best`, `RUN@last` or `RUN@STEP` a checkpoint of the run. A name
    that is not a path may be a shipped model's. The hub is not asked.

    Raises:
        UserError: Nothing matches; the message gives the nearest names.
    """
    place = find_path(name)
    if not place.exists():
        raise UserError(f"no such model: {place}{suggestion(place)}")
    if place.is_file():
        return place
    for candidate in (place, place / "ema", place / "model", *(place / part for part in SUBFOLDERS[1:])):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(
        f"{place} is not a model: it is neither a diffusers folder (config.json), nor a run or checkpoint with model/ "
        "in it, nor a pipeline with vae/"
    )


def maker_place(made: str, model_hash: str) -> Path:
    """Return the folder of the shipped model that made something, whose MODEL was not named.

    Args:
        made: What was made and how, such as `STORE was made by`.
        model_hash: Hash of the model, which the store records.

    Raises:
        UserError: It is none of the shipped models, or a version that this installation does not have.
    """
    version = version_of_hash(model_hash)
    if version is None:
        raise UserError(
            f"{made} a model that does not ship with ldm_ae (hash {model_hash[:12]}); give the model as MODEL"
        )
    if (folder := version.folder) is None:
        raise UserError(f"{made} {version.title}; {version.advice}")
    return folder


def local_place(name: str | Path) -> Path:
    """Return `model_place(name)`, or for a hub name its place in the cache, downloaded if necessary.

    Raises:
        UserError: Nothing matches, or the name could not be looked up.
    """
    text = str(name)
    if text.startswith(PREFIX) or (not find_path(name).exists() and is_hub_name(text)):
        from ldm_ae.models.loading.hub import hub_folder

        return hub_folder(text, "" if text.startswith(PREFIX) else suggestion(Path(text)).removeprefix("; "))
    return model_place(name)
