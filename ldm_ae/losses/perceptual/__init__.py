"""The perceptual losses, one per file. A new loss is a new file with a `PerceptualLoss` class in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import Registry, export
from ldm_ae.losses.perceptual._feature_distance import FeatureDistance
from ldm_ae.losses.perceptual.deep_features import DeepFeatures
from ldm_ae.losses.perceptual.gram import GramDistance
from ldm_ae.losses.perceptual.interface import PerceptualLoss
from ldm_ae.losses.perceptual.logits import LogitDistance
from ldm_ae.losses.perceptual.lpips import LPIPS
from ldm_ae.losses.perceptual.ms_ssim import MSSSIMDistance
from ldm_ae.losses.perceptual.shift_tolerant_lpips import ShiftTolerantLPIPS
from ldm_ae.losses.perceptual.ssim import SSIMDistance
from ldm_ae.losses.perceptual.weighted_sum import WeightedSum

__all__ = [
    "LPIPS",
    "PERCEPTUAL_LOSSES",
    "DeepFeatures",
    "FeatureDistance",
    "GramDistance",
    "LogitDistance",
    "MSSSIMDistance",
    "PerceptualLoss",
    "SSIMDistance",
    "ShiftTolerantLPIPS",
    "WeightedSum",
]

PERCEPTUAL_LOSSES: Registry[PerceptualLoss] = Registry(__name__, PerceptualLoss, "perceptual loss")  # type: ignore[type-abstract]
"""Every perceptual loss by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, PERCEPTUAL_LOSSES)
