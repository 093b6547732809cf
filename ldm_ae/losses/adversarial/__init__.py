"""The adversarial losses, one a file."""

from ldm_ae.losses.adversarial.hinge import HingeLoss
from ldm_ae.losses.adversarial.interface import AdversarialLoss
from ldm_ae.losses.adversarial.non_saturating import NonSaturatingLoss
from ldm_ae.losses.adversarial.vanilla import VanillaLoss

__all__ = ["AdversarialLoss", "HingeLoss", "NonSaturatingLoss", "VanillaLoss"]
