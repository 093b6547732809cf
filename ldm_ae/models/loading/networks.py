"""Reading of a network from a model folder or a single file, with a one-line error for each kind of damage."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.models.loading.configs import read_config
from ldm_ae.models.loading.places import local_place
from ldm_ae.models.loading.single_file import announce, build_network, open_single_file
from ldm_ae.models.loading.weights import require_weights
from ldm_ae.models.scaling import settle_factor

ModelT = TypeVar("ModelT")
_log = logging.getLogger("ldm_ae")


def class_name_of(name: str | Path) -> str:
    """Return the class of the network that MODEL denotes: of its config.json, or inferred from a single file.

    Raises:
        UserError: Nothing matches, or the configuration or the file is damaged.
    """
    place = local_place(name)
    if place.is_file():
        return open_single_file(place, pickled=False).class_name
    return str(read_config(place)["_class_name"])


def read_network(cls: type[ModelT], name: str | Path) -> ModelT:
    """Load the model of class `cls` from a folder, a single file, a shipped model or a hub name, in float32.

    The factor that earlier versions wrote beside vectors becomes 1, its intended value (`settle_factor`).

    Raises:
        UserError: No such folder, no configuration, no safetensors weights, weights that do not fit, or a hub name
            that could not be downloaded.
    """
    from diffusers.utils import logging as diffusers_logging

    place, loader = local_place(name), cast(Any, cls)
    if place.is_file():
        file = open_single_file(place, pickled=False)
        _require_class(place, file.class_name, cls)
        net = build_network(file, cls)
        announce(file)
        return cast(ModelT, net)
    config = read_config(place)
    weights = require_weights(place)
    _require_class(place, config["_class_name"], cls)
    if weights.variant is not None:
        _log.warning(f"{place} has only weights of the variant {weights.variant}; they are converted to float32")
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # diffusers warns of weights that do not fit; here they are an error
    try:
        model, info = loader.from_pretrained(
            str(place), use_safetensors=True, torch_dtype=torch.float32, local_files_only=True,
            output_loading_info=True, variant=weights.variant,
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"{place} cannot be loaded as {cls.__name__}: {reason(error)}") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    model.register_to_config(_name_or_path="")  # a path on this machine is meaningless where the model is saved next
    settle_factor(model)
    for words, keys in (("no", info["missing_keys"]), ("an unknown", info["unexpected_keys"])):
        if keys:
            raise UserError(f"{place} has {words} weight {printable(min(keys))}; its configuration does not fit")
    return model


def _require_class(place: Path, found: object, cls: type[Any]) -> None:
    if found != cls.__name__:
        raise UserError(f"{place} holds a {printable(found)}, not a {cls.__name__}")
