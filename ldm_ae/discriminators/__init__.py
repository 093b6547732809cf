"""The discriminators, one a file."""

from ldm_ae.discriminators.interface import BothSides, Discriminator, Verdict
from ldm_ae.discriminators.patchgan import PatchDiscriminator

__all__ = ["BothSides", "Discriminator", "PatchDiscriminator", "Verdict"]
