"""The model of a function of the API: an open one or a name, and how it is used."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch

from ldm_ae.api.loading import load
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import DTYPES
from ldm_ae.models import Autoencoder


class UsedModel(NamedTuple):
    """A model that a function may change, and where it runs."""

    model: Autoencoder
    name: str
    """Its origin, in words."""
    precision: str
    device: str | torch.device


def used_model(
    model: Autoencoder | str | Path, *, precision: str | None, device: str | torch.device | None
) -> UsedModel:
    """Return a copy of an open model, by default on its device and in its precision; or load what `load` takes."""
    name = type(model.net).__name__ if isinstance(model, Autoencoder) else str(model)
    loaded = copy.deepcopy(model) if isinstance(model, Autoencoder) else load(model, device=device or "auto")
    if precision is None:
        precision = next((name for name, dtype in DTYPES.items() if dtype == loaded.dtype), "fp32")
    return UsedModel(loaded, name, precision, loaded.device if device is None else device)


def require_at_least(least: int, **settings: int | None) -> None:
    """Raise UserError for the first setting below a number; None is not checked."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
