"""The convolutional parts of torchvision's classifiers before ResNet, and the files of their ImageNet weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ldm_ae.core.errors import UserError

Net = Literal["vgg", "alex", "squeeze"]

CUTS: dict[Net, tuple[int, ...]] = {
    "vgg": (0, 4, 9, 16, 23, 30),
    "alex": (0, 2, 5, 8, 10, 12),
    "squeeze": (0, 2, 5, 8, 10, 11, 12, 13),
}
"""Cuts of torchvision's `features`; each piece ends after the ReLU whose output is a layer of features."""


def random_convolutions(net: Net) -> nn.Sequential:
    """Return the convolutional part with random weights (seeded by torch)."""
    build, _ = _network(net)
    with torch.device("meta"):  # the unused classifiers, hundreds of megabytes, are never allocated
        features = build(weights=None).features
    assert isinstance(features, nn.Sequential)
    features.to_empty(device="cpu")
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return features


def weights_file(net: Net, user: str, alternative: str) -> Path:
    """Return torchvision's file of weights in the torch hub cache; fetch it if the machine is online.

    Args:
        net: The network.
        user: What needs them, for the message.
        alternative: What to do without the file, for the message.

    Raises:
        UserError: The file is not there and could not be fetched.
    """
    _, url = _network(net)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    place = f"put torchvision's {path.name} into {path.parent}"
    missing = f"the ImageNet weights of {user} are missing; {place}, or {alternative}"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        raise UserError(missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[1], progress=False)
    except OSError as error:
        raise UserError(f"{missing} (the download failed: {error})") from error
    return path


def _network(net: Net) -> tuple[Callable[..., nn.Module], str]:
    """Return torchvision's constructor, and the URL of its weights."""
    from torchvision import models

    found: tuple[Callable[..., nn.Module], str] = {
        "vgg": (models.vgg16, models.VGG16_Weights.IMAGENET1K_V1.url),
        "alex": (models.alexnet, models.AlexNet_Weights.IMAGENET1K_V1.url),
        "squeeze": (models.squeezenet1_1, models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url),
    }[net]
    return found
