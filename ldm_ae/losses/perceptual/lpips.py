"""LPIPS over the networks of the `lpips` package, with the same results in less time.

Source: arXiv 1801.03924. The channel weights come from the lpips package (version 0.1 of its calibration), the
networks' ImageNet weights from torchvision's files.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.io.legacy import read_legacy_weights
from ldm_ae.losses.perceptual._feature_distance import FeatureDistance

Net = Literal["vgg", "alex", "squeeze"]

_STAGES: dict[Net, tuple[int, ...]] = {
    "vgg": (0, 4, 9, 16, 23, 30),
    "alex": (0, 2, 5, 8, 10, 12),
    "squeeze": (0, 2, 5, 8, 10, 11, 12, 13),
}
"""Cuts of torchvision's `features`; each piece ends after the ReLU whose output is compared."""


class LPIPS(FeatureDistance):
    """Learned perceptual image patch similarity.

    Args:
        net: The feature network.
        pretrained: ImageNet weights for it, from torchvision's file in the torch hub cache, fetched if it is not there
            and the machine is online. False leaves random weights (seeded by torch), for tests of speed and of code.

    Raises:
        UserError: The weights are not there and could not be fetched.
    """

    def __init__(self, *, net: Net = "vgg", pretrained: bool = True):
        cuts = _STAGES[net]
        features, url = _torchvision_features(net)
        if pretrained:
            weights = read_legacy_weights(_weights_file(net, url))
            prefix = "features."
            features.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
        layers = list(features.children())
        stages = [nn.Sequential(*layers[start:end]) for start, end in pairwise(cuts)]
        super().__init__(f"lpips_{net}", stages, _channel_weights(net, len(stages)))


def _torchvision_features(net: Net) -> tuple[nn.Sequential, str]:
    """Return the convolutional part with random weights, and the URL of torchvision's trained ones."""
    from torchvision import models

    build: Callable[..., nn.Module]
    build, url = {
        "vgg": (models.vgg16, models.VGG16_Weights.IMAGENET1K_V1.url),
        "alex": (models.alexnet, models.AlexNet_Weights.IMAGENET1K_V1.url),
        "squeeze": (models.squeezenet1_1, models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url),
    }[net]
    with torch.device("meta"):  # the unused classifiers, hundreds of megabytes, are never allocated
        features = build(weights=None).features
    assert isinstance(features, nn.Sequential)
    features.to_empty(device="cpu")
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return features, url


def _weights_file(net: Net, url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    missing = (
        f"the ImageNet weights of lpips '{net}' are missing; put torchvision's {path.name} into {path.parent}, "
        "or use ldm_ae.losses.ShiftTolerantLPIPS, whose weights come from PyPI (pip install 'ldm_ae[offline]')"
    )
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        raise UserError(missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[1], progress=False)
    except OSError as error:
        raise UserError(f"{missing} (the download failed: {error})") from error
    return path


def _channel_weights(net: Net, count: int) -> list[Tensor]:
    spec = importlib.util.find_spec("lpips")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    weights = read_legacy_weights(Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / f"{net}.pth")
    return [weights[f"lin{i}.model.1.weight"].flatten() for i in range(count)]
