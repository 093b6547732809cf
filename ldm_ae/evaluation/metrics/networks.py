"""The networks that scores are measured with, by the names that commands take."""

from __future__ import annotations

from typing import Any

from ldm_ae.evaluation.metrics.features import EfficientNetLite0Features, FeatureNetwork, InceptionFeatures


def perceptual_network(name: str) -> Any:
    """Return the network of a perceptual distance by its score's name, such as `lpips_alex`; None for `none`."""
    from ldm_ae.losses import LPIPS, ShiftTolerantLPIPS

    if name == "none":
        return None
    family, _, net = name.partition("_")
    return ShiftTolerantLPIPS(net=net) if family == "stlpips" else LPIPS(net=net)  # type: ignore[arg-type]


def feature_network(name: str) -> FeatureNetwork | None:
    """Return the network of a Fréchet distance: `inception`, `efficientnet_lite0`, the former where its weights are at
    hand for `auto`, and None for `none`."""
    if name == "none":
        return None
    if name == "inception" or (name == "auto" and InceptionFeatures.at_hand()):
        return InceptionFeatures()
    return EfficientNetLite0Features()
