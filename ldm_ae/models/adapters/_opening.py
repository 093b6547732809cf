"""Opening of a pretrained network for an adapter."""

from __future__ import annotations

from typing import Any

from ldm_ae.core.errors import UserError
from ldm_ae.models.channels import change_channels
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.networks import read_network


def open_pretrained(
    model: Autoencoder, network: type[Any], pretrained: str, *, pixels: dict[str, Any] | str | None = None
) -> None:
    """Set `model.net` to the network of class `network` in a folder, and check its configuration by `model.spec`.

    Args:
        model: The adapter under construction.
        network: The class of diffusers.
        pretrained: A model folder, a run or a checkpoint of one, the name of a shipped model, or a hub name.
        pixels: The images that replace those of the folder, see `change_channels`.

    Raises:
        UserError: There is no such model, it is damaged, or its images or scale are not supported.
    """
    model.net = read_network(network, pretrained)
    change_channels(model.net, pixels)
    try:
        _ = model.spec
    except UserError as error:
        raise UserError(f"{pretrained}/config.json: {error}") from None
