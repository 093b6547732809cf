"""Opening of MODEL in commands: a shipped model, a diffusers folder, a run, a checkpoint of one, a file, a hub name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.io.weight_files import is_safetensors_file
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.configs import read_config
from ldm_ae.models.loading.other_classes import describe_class
from ldm_ae.models.loading.places import local_place, model_place
from ldm_ae.models.loading.single_file import announce, build_autoencoder, open_single_file


def is_model_folder(path: str | Path) -> bool:
    """Return whether `path` can be used as MODEL."""
    try:
        found = model_place(path)
    except UserError:
        return False
    return found.is_dir() or is_safetensors_file(found)


def load_autoencoder(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    config: str | Path | Mapping[str, Any] | None = None,
) -> Autoencoder:
    """Load the autoencoder that MODEL denotes, in float32, in eval mode, on `device`.

    Args:
        path: A diffusers model or pipeline folder, a run directory, a checkpoint, one by its name (`RUN@best`,
            `RUN@last`, `RUN@1500`), a single safetensors file of any layout in `ldm_ae.models.loading.layouts`, the
            name of a shipped model (`kl-f8c16-small`, `vq-f8-small`), or a model, pipeline or file on the Hugging Face
            hub: `hf:owner/name`, `hf:owner/name/subfolder`, `hf:owner/name/ae.safetensors`, or `owner/name` where that
            is not a path.
        device: Device of the returned model.
        config: For a single file: values of the network's configuration, which take precedence over those inferred from
            the weights: a mapping, a JSON file or a model folder. What was inferred is logged.

    Raises:
        UserError: Nothing exists there, the model class is unknown, or weights are missing.
    """
    place = local_place(path)
    if place.is_file():
        file = open_single_file(place, config=config, pickled=False)
        model = build_autoencoder(file)
        announce(file)
        return model.eval().requires_grad_(False).to(device)
    if config is not None:
        raise UserError(f"{path} is a model folder with its own config.json; a config (--config) is only for single "
                        "files; remove it")  # fmt: skip
    name = str(read_config(place)["_class_name"])
    if name not in AUTOENCODERS:
        raise UserError(f"{path} holds {describe_class(name, AUTOENCODERS)}")
    model = AUTOENCODERS[name].from_folder(place)
    return model.eval().requires_grad_(False).to(device)
