"""The identity of a model: its configuration and a hash of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import RGB
from ldm_ae.models.interface import Autoencoder


def hash_json(value: object) -> str:
    """Return the sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def model_config(model: Autoencoder) -> dict[str, Any]:
    """Return the network's configuration as JSON values, without folder names and library versions."""
    config: dict[str, Any] = {"_class_name": type(model.net).__name__}
    config |= {key: value for key, value in model.net.config.items() if not key.startswith("_")}
    return json.loads(json.dumps(config))


def network_config(model: Autoencoder) -> dict[str, Any]:
    """Return `model_config` without the keys that do not change the latents, such as scaling constants."""
    neutral = {*model.scale_keys, "sample_size", *model.neutral_config}
    return {key: value for key, value in model_config(model).items() if key not in neutral}


def weights_sha256(module: nn.Module, *, without: Collection[str] = ()) -> str:
    """Return the sha256 in hex of a state dict: names, dtypes, shapes and bytes, in the order of the names.

    Args:
        module: The module.
        without: Names of tensors that are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name in without:
            continue
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_hash(model: Autoencoder) -> str:
    """Return the sha256 in hex of the network's float32 weights, the configuration that shapes it, and its images.

    Scaling constants are excluded: they do not change a latent, and an export that measures them is the same model. The
    specification of the images is included where they are not RGB in 8 bits: with other limits, the same file has other
    latents.

    Raises:
        UserError: The weights are not float32, so that their hash would differ from the saved model's.
    """
    for parameter in model.net.parameters():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"the model's weights are {parameter.dtype}; load the model in float32 and set the precision instead"
            )
    weights = weights_sha256(model.net, without=model.scale_buffers)
    described = {"config": network_config(model), "weights": weights}
    return hash_json(described if model.pixel_spec == RGB else described | {"pixels": model.pixel_spec.to_json()})
