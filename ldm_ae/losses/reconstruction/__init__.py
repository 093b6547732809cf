"""The reconstruction losses, one a file."""

from ldm_ae.losses.reconstruction.charbonnier import Charbonnier
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss
from ldm_ae.losses.reconstruction.l1 import L1
from ldm_ae.losses.reconstruction.l2 import L2

__all__ = ["L1", "L2", "Charbonnier", "ReconstructionLoss"]
