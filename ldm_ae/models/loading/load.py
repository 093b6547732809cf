"""Resolution of MODEL in commands: a shipped model, a diffusers folder, a run, a checkpoint of one, or a hub name."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.folder import local_folder, read_config, resolve_model_folder
from ldm_ae.models.loading.other_classes import describe_class


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
        path: A diffusers model folder, a run directory, a checkpoint, one by its name (`RUN@best`, `RUN@last`,
            `RUN@1500`), the name of a shipped model (`kl-f8c4-small`, `vq-f8-small`), or a model or pipeline on the
            Hugging Face hub: `hf:owner/name`, `hf:owner/name/subfolder`, or `owner/name` where that is not a path.
        device: Device of the returned model.

    Raises:
        UserError: Nothing exists there, the model class is unknown, or weights are missing.
    """
    folder = local_folder(path)
    name = str(read_config(folder)["_class_name"])
    if name not in AUTOENCODERS:
        raise UserError(f"{path} holds {describe_class(name, AUTOENCODERS)}")
    model = AUTOENCODERS[name].from_folder(folder)
    return model.eval().requires_grad_(False).to(device)
