"""Resolution of MODEL in commands: a shipped model, a diffusers folder, a run, a checkpoint of one, or a hub name."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm_ae.core.errors import UserError, printable
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.folder import find_folder, read_config, suggestion
from ldm_ae.models.loading.hub import hub_folder, is_hub_name


def resolve_model_folder(path: str | Path) -> Path:
    """Return the diffusers folder that MODEL denotes; averaged (EMA) weights take precedence over raw ones.

    A model folder denotes itself, a checkpoint its `ema/` (`model/` without EMA), a run its newest exported `model/`.
    A name that is not a path may be a shipped model's. UserError if nothing matches.
    """
    folder = find_folder(path)
    if not folder.exists():
        raise UserError(f"no such model: {folder}{suggestion(folder)}")
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a model folder; convert it with: ldm-ae import {folder} OUT")
    for candidate in (folder, folder / "ema", folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(
        f"{folder} is not a model: expected a diffusers folder (config.json), or a run or checkpoint with model/ in it"
    )


def is_model_folder(path: str | Path) -> bool:
    """Return whether `path` can be used as MODEL."""
    try:
        resolve_model_folder(path)
    except UserError:
        return False
    return True


def load_autoencoder(path: str | Path, *, device: str | torch.device = "cpu") -> Autoencoder:
    """Load the autoencoder that MODEL denotes, in float32, in eval mode, on `device`.

    Args:
        path: A diffusers model folder, a run directory, a checkpoint, the name of a shipped model (`kl-f8c4-small`,
            `vq-f8-small`), or `owner/name` of a model or pipeline on the Hugging Face hub.
        device: Device of the returned model.

    Raises:
        UserError: Nothing exists there, the model class is unknown, or weights are missing.
    """
    on_hub = not find_folder(path).exists() and is_hub_name(str(path))
    folder = hub_folder(str(path)) if on_hub else resolve_model_folder(path)
    name = str(read_config(folder)["_class_name"])
    if name not in AUTOENCODERS:
        place = path if on_hub else folder
        raise UserError(f"{place} holds a {printable(name)}; expected one of {', '.join(AUTOENCODERS)}")
    model = AUTOENCODERS[name].from_folder(folder)
    return model.eval().requires_grad_(False).to(device)
