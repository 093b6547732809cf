"""The perceptual losses, one a file."""

from ldm_ae.losses.perceptual.feature_distance import FeatureDistance
from ldm_ae.losses.perceptual.interface import PerceptualLoss
from ldm_ae.losses.perceptual.lpips import LPIPS
from ldm_ae.losses.perceptual.shift_tolerant_lpips import ShiftTolerantLPIPS

__all__ = ["LPIPS", "FeatureDistance", "PerceptualLoss", "ShiftTolerantLPIPS"]
