"""The discriminators, one a file."""

from ldm_ae.discriminators.interface import BothSides, Discriminator, Verdict
from ldm_ae.discriminators.patchgan import PatchDiscriminator
from ldm_ae.discriminators.spectral_patchgan import SpectralPatchDiscriminator

__all__ = ["BothSides", "Discriminator", "PatchDiscriminator", "SpectralPatchDiscriminator", "Verdict"]
