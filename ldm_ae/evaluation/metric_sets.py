"""Selection of the metrics to compute: the default set, and sets by name."""

from __future__ import annotations

from collections.abc import Sequence

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics import METRICS
from ldm_ae.evaluation.metrics.codebook import Codebook
from ldm_ae.evaluation.metrics.cost import Cost
from ldm_ae.evaluation.metrics.count import ImageCount
from ldm_ae.evaluation.metrics.equivariance import Equivariance
from ldm_ae.evaluation.metrics.features import (
    EfficientNetLite0Features,
    FeatureNetwork,
    InceptionFeatures,
    features_at_hand,
)
from ldm_ae.evaluation.metrics.frechet import RFID, Frechet
from ldm_ae.evaluation.metrics.interface import ImageMetric, Metric
from ldm_ae.evaluation.metrics.latents import ActiveChannels, LatentStatistics
from ldm_ae.evaluation.metrics.msssim import MSSSIM
from ldm_ae.evaluation.metrics.noise_tolerance import NoiseTolerance
from ldm_ae.evaluation.metrics.perceptual import Perceptual, PerceptualDistance
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.evaluation.metrics.rate import Rate
from ldm_ae.evaluation.metrics.spectrum import LatentSpectrum
from ldm_ae.evaluation.metrics.ssim import SSIM
from ldm_ae.evaluation.metrics.storage import Storage

DEFAULT = "default"
"""Name of the default set among names of metrics."""
COMPARE = "compare"
"""Name of the set that says which of several models to take: the default set, and what `COMPARED` names."""
COMPARED = (MSSSIM, Storage, LatentSpectrum, Equivariance, NoiseTolerance, Cost)
"""Metrics of `compare` beside the default set. They need neither downloads nor labels."""
SETS = (DEFAULT, COMPARE)
PERCEPTUAL_NETWORK, FEATURE_NETWORK = "stlpips_vgg", "auto"
"""Names of the networks of the default set."""
NO_INCEPTION = (
    "FID's Inception weights are not on this machine. --features inception downloads them once (91 MiB); without a "
    "network, give their file by --inception-weights FILE"
)
"""Reason why the default set has no rFID."""


def default_metrics(
    perceptual: PerceptualDistance | None = None, features: FeatureNetwork | None = None
) -> list[Metric]:
    """Return the default metrics; those that need a network are included only where it is given."""
    metrics = [
        PSNR(),
        SSIM(),
        *([] if perceptual is None else [Perceptual(perceptual)]),
        Rate(),
        *([] if features is None else [Frechet(features)]),
        ActiveChannels(),
        Codebook(),
        LatentStatistics(),
        ImageCount(),
    ]
    for metric in metrics:
        metric.optional = True
    return metrics


def validation_metrics(perceptual: PerceptualDistance | None) -> list[ImageMetric]:
    """Return the metrics of a validation in training."""
    return [PSNR(), SSIM(), *([] if perceptual is None else [Perceptual(perceptual)])]


def named_metrics(
    names: Sequence[str] = (DEFAULT,), *, perceptual: str | None = None, features: str | None = None,
    inception_weights: str | None = None,
) -> list[Metric]:  # fmt: skip
    """Return new metrics by their names, each once, in the order of the names.

    Args:
        names: Registered names; `default` stands for the default set, `compare` for that of a comparison of models,
            `perceptual` and `frechet` for their metrics of networks.
        perceptual: The network of `perceptual`, such as `lpips_alex`, or `none`.
        features: The network of `frechet`: `auto`, `inception`, `efficientnet_lite0` or `none`.
        inception_weights: File of FID's Inception weights for `rfid`, and for `frechet` unless `features` is another
            network. Without it, `rfid` and `inception` take the file of PyTorch's cache, or download it.

    Raises:
        UserError: an unknown name, a network or file that no metric of these uses, or weights that are neither
            available locally nor downloaded.
    """
    sets = {*SETS} & {*names}
    for option, name, given in (("perceptual", Perceptual.name, perceptual), ("features", Frechet.name, features)):
        if given is not None and not sets and name not in names:
            raise UserError(
                f"--{option} {given} has no effect with --metrics {' '.join(names)}; remove it, or add {name}"
            )
    if inception_weights is not None:
        other = "" if features in (None, "auto", "inception") else f" --features {features}"
        if RFID.name not in names and (other or not {*SETS, Frechet.name} & {*names}):
            raise UserError(
                f"--inception-weights has no effect with --metrics {' '.join(names)}{other}; remove it, or add "
                f"{RFID.name}"
            )
        features = features if other else "inception"
    perceptual, features = perceptual or PERCEPTUAL_NETWORK, features or FEATURE_NETWORK
    found: dict[str, Metric] = {}
    for name in names:
        if name in SETS:
            more = default_metrics(perceptual_network(perceptual), feature_network(features, inception_weights))
            more += [metric() for metric in COMPARED] if name == COMPARE else []
        elif name == Perceptual.name:
            more = [] if (distance := perceptual_network(perceptual)) is None else [Perceptual(distance)]
        elif name == Frechet.name:
            extractor = feature_network(features, inception_weights)
            more = [] if extractor is None else [Frechet(extractor)]
        elif name == RFID.name:
            more = [RFID(inception_weights)]
        else:
            more = [METRICS[name]()]
        for metric in more:
            found.setdefault(metric.name, metric)
    if features == "auto" and RFID.name not in found:
        for metric in found.values():
            if isinstance(metric, Frechet):
                metric.absent = {RFID.name: NO_INCEPTION}
    return list(found.values())


def perceptual_network(name: str) -> PerceptualDistance | None:
    """Return the network of a perceptual metric by its name, such as `lpips_alex`; None for `none`."""
    if name == "none":
        return None
    metric = METRICS[name]()
    assert isinstance(metric, Perceptual), f"{name} is a metric without a perceptual network"
    network: PerceptualDistance = metric.network
    return network


def feature_network(name: str, inception_weights: str | None = None) -> FeatureNetwork | None:
    """Return the network of a Fréchet distance: `inception`, `efficientnet_lite0`, for `auto` the former where its
    weights are available locally and else the latter, and None for `none`. Only `inception` downloads weights."""
    if name == "none":
        return None
    if name == "auto":
        return features_at_hand()
    return InceptionFeatures(inception_weights) if name == "inception" else EfficientNetLite0Features()
