"""Selection of the metrics to compute: the default set, and sets by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics import METRICS
from ldm_ae.evaluation.metrics.channel_correlation import ChannelCorrelation
from ldm_ae.evaluation.metrics.codebook import Codebook
from ldm_ae.evaluation.metrics.cost import Cost
from ldm_ae.evaluation.metrics.count import ImageCount
from ldm_ae.evaluation.metrics.dinov2 import RFDD, WEIGHTS, DINOv2Features
from ldm_ae.evaluation.metrics.equivariance import Equivariance
from ldm_ae.evaluation.metrics.features import (
    EfficientNetLite0Features,
    FeatureNetwork,
    InceptionFeatures,
    features_at_hand,
)
from ldm_ae.evaluation.metrics.frechet import RFID, Frechet
from ldm_ae.evaluation.metrics.interface import ImageMetric, Metric
from ldm_ae.evaluation.metrics.interpolation import Interpolation
from ldm_ae.evaluation.metrics.latents import ActiveChannels, LatentStatistics
from ldm_ae.evaluation.metrics.msssim import MSSSIM
from ldm_ae.evaluation.metrics.noise_tolerance import NoiseTolerance
from ldm_ae.evaluation.metrics.perceptual import Perceptual, PerceptualDistance
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.evaluation.metrics.rate import Rate
from ldm_ae.evaluation.metrics.spectrum import LatentSpectrum
from ldm_ae.evaluation.metrics.ssim import SSIM
from ldm_ae.evaluation.metrics.storage import Storage
from ldm_ae.evaluation.metrics.text import TextError

DEFAULT = "default"
"""Name of the default set among names of metrics."""
COMPARE = "compare"
"""Name of the set that says which of several models to take: the default set, what `COMPARED` names,
rFDD where its weights are on this machine, and the interpolation's Fréchet distance."""
COMPARED = (MSSSIM, TextError, Storage, LatentSpectrum, ChannelCorrelation, Equivariance, NoiseTolerance, Cost)
"""Metrics of `compare` beside the default set that need no network."""
SETS = (DEFAULT, COMPARE)
OVER_FEATURES = (Frechet.name, Interpolation.name)
"""Names of the metrics whose network `features` chooses."""
PERCEPTUAL_NETWORK, FEATURE_NETWORK = "stlpips_vgg", "auto"
"""Names of the networks of the default set."""
NO_INCEPTION = (
    "FID's Inception weights are not on this machine. --features inception downloads them once (91 MiB); without a "
    "network, give their file by --inception-weights FILE"
)
"""Reason why the default set has no rFID."""
NO_DINOV2 = (
    f"the weights of {WEIGHTS} are not on this machine. --metrics compare {RFDD.name} downloads them once (1.2 GiB); "
    "without a network, give their folder by --dinov2 FOLDER"
)
"""Reason why the set `compare` has no rFDD."""


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
    inception_weights: str | None = None, dinov2: str | None = None,
) -> list[Metric]:  # fmt: skip
    """Return new metrics by their names, each once, in the order of the names.

    Args:
        names: Registered names; `default` stands for the default set, `compare` for that of a comparison of models,
            `perceptual` and `frechet` for their metrics of networks.
        perceptual: The network of `perceptual`, such as `lpips_alex`, or `none`.
        features: The network of `frechet` and `interpolation`: `auto`, `inception`, `efficientnet_lite0` or `none`.
        inception_weights: File of FID's Inception weights for `rfid`, and for `frechet` unless `features` is another
            network. Without it, `rfid` and `inception` take the file of PyTorch's cache, or download it.
        dinov2: Folder, or name on the hub, of the DINOv2 of `rfdd`. Without it, `rfdd` takes ViT-L/14 of the hub's
            cache, or downloads it, and `compare` has `rfdd` only where the cache has it.

    Raises:
        UserError: an unknown name, a network or file that no metric of these uses, or weights that are neither
            available locally nor downloaded.
    """
    for option, users, given in (
        ("perceptual", (Perceptual.name, *SETS), perceptual), ("features", (*OVER_FEATURES, *SETS), features),
        ("dinov2", (RFDD.name, COMPARE), dinov2),
    ):  # fmt: skip
        if given is not None and not {*users} & {*names}:
            raise UserError(
                f"--{option} {given} has no effect with --metrics {' '.join(names)}; remove it, or add {users[0]}"
            )
    if inception_weights is not None:
        other = "" if features in (None, "auto", "inception") else f" --features {features}"
        if RFID.name not in names and (other or not {*SETS, *OVER_FEATURES} & {*names}):
            raise UserError(
                f"--inception-weights has no effect with --metrics {' '.join(names)}{other}; remove it, or add "
                f"{RFID.name}"
            )
        features = features if other else "inception"
    networks = _Networks(perceptual or PERCEPTUAL_NETWORK, features or FEATURE_NETWORK, inception_weights, dinov2)
    found: dict[str, Metric] = {}
    for name in names:
        for metric in _of_name(name, networks, found):
            found.setdefault(metric.name, metric)
    if networks.features == "auto" and RFID.name not in found:
        for metric in found.values():
            if isinstance(metric, Frechet):
                metric.absent = {RFID.name: NO_INCEPTION}
    if COMPARE in names and not any(isinstance(metric, RFDD) for metric in found.values()):
        first = next(iter(found.values()))
        first.absent = {**first.absent, RFDD.name: NO_DINOV2}
    return list(found.values())


@dataclass(frozen=True)
class _Networks:
    """The networks that options choose, each built once and only if a metric uses it."""

    perceptual: str
    features: str
    inception_weights: str | None
    dinov2: str | None

    @cached_property
    def of_perceptual(self) -> PerceptualDistance | None:
        return perceptual_network(self.perceptual)

    @cached_property
    def of_features(self) -> FeatureNetwork | None:
        return feature_network(self.features, self.inception_weights)


def _of_name(name: str, networks: _Networks, found: Mapping[str, Metric]) -> Iterator[Metric]:
    """Yield the metrics of a name; `found` has those that were yielded before."""
    if name in SETS:
        yield from default_metrics(networks.of_perceptual, networks.of_features)
        if name == COMPARE:
            yield from (metric() for metric in COMPARED)
            if networks.dinov2 is not None or DINOv2Features.at_hand():
                yield RFDD(networks.dinov2)
            yield from _of_name(Interpolation.name, networks, found)
    elif name == Perceptual.name:
        if networks.of_perceptual is not None:
            yield Perceptual(networks.of_perceptual)
    elif name in OVER_FEATURES:
        if networks.of_features is None:
            return
        if name == Frechet.name:
            yield Frechet(networks.of_features)
        else:
            same = (m for m in found.values() if isinstance(m, Frechet) and m.features is networks.of_features)
            yield Interpolation(networks.of_features, originals=next(same, None))
    elif name == RFID.name:
        yield RFID(networks.inception_weights)
    elif name == RFDD.name:
        yield RFDD(networks.dinov2)
    else:
        yield METRICS[name]()


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
