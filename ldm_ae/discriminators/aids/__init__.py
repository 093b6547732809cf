"""The aids of discriminators, one per file. A new one is a new file with a `DiscriminatorAid` class in it."""

from __future__ import annotations

from ldm_ae.core.registry import Registry
from ldm_ae.discriminators.aids.aided import AidedDiscriminator, with_aids
from ldm_ae.discriminators.aids.diffaug import DiffAug
from ldm_ae.discriminators.aids.eight_bit import EightBit
from ldm_ae.discriminators.aids.interface import DiscriminatorAid
from ldm_ae.discriminators.aids.lecam import LeCam
from ldm_ae.discriminators.aids.r1 import R1

__all__ = ["DISCRIMINATOR_AIDS", "R1", "AidedDiscriminator", "DiffAug", "DiscriminatorAid", "EightBit", "LeCam",
           "with_aids"]  # fmt: skip

DISCRIMINATOR_AIDS: Registry[DiscriminatorAid] = Registry(__name__, DiscriminatorAid, "aid of a discriminator")
"""Every aid of a discriminator by its name."""
