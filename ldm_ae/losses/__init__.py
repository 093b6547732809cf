"""The losses, one family a file, and the objective that adds them up."""

from ldm_ae.losses.adversarial import AdversarialLoss, HingeLoss, NonSaturatingLoss, VanillaLoss
from ldm_ae.losses.objective import Objective, ObjectiveConfig, ReconstructionTerms
from ldm_ae.losses.perceptual import LPIPS, FeatureDistance, PerceptualLoss, ShiftTolerantLPIPS
from ldm_ae.losses.reconstruction import L1, L2, Charbonnier, ReconstructionLoss

__all__ = [
    "L1",
    "L2",
    "LPIPS",
    "AdversarialLoss",
    "Charbonnier",
    "FeatureDistance",
    "HingeLoss",
    "NonSaturatingLoss",
    "Objective",
    "ObjectiveConfig",
    "PerceptualLoss",
    "ReconstructionLoss",
    "ReconstructionTerms",
    "ShiftTolerantLPIPS",
    "VanillaLoss",
]
