"""The origins of the latents in a store: the model, the transform, the source, the seed."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import Any

import torch

from ldm_ae.models import Autoencoder, LatentSpec, for_inference
from ldm_ae.models.scaling import factor_beside_vectors

_LATER = {"codebook_levels": None, "codebook_maps": None, "patch_size": 1, "image_size": None}
"""The fields of a specification that older stores lack, with their defaults."""


def inference_copy(
    model: Autoencoder, *, device: str | torch.device, precision: str, compiled: bool = False
) -> Autoencoder:
    """Return a copy prepared by `for_inference`, so that the caller's model keeps its weights and its hash."""
    return for_inference(copy.deepcopy(model), device=device, precision=precision, compiled=compiled)


def scaling_of(spec: LatentSpec) -> dict[str, Any]:
    """Return the model's latent specification as JSON values; `LatentSpec(**scaling)` restores it.

    Later fields are included only if they differ from their defaults, so that a store without them is unchanged.
    """
    found: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return {key: value for key, value in found.items() if key not in _LATER or value != _LATER[key]}


def read_scaling(scaling: dict[str, Any]) -> LatentSpec:
    """Invert `scaling_of`; raise `TypeError` or `ValueError` for an invalid specification.

    Beside vectors, the factor that earlier versions wrote counts as 1: `factor_beside_vectors`.
    """
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in scaling.items()}
    if isinstance(mean := values.get("latents_mean"), tuple) and isinstance(std := values.get("latents_std"), tuple):
        values["scaling_factor"] = factor_beside_vectors(values.get("scaling_factor", 1.0), mean, std)
    return LatentSpec(**values)
