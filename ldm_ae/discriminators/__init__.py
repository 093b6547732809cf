"""The discriminators, one per file, and their aids in `aids`. A new discriminator is a new file with a `Discriminator`
class in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import Registry, export
from ldm_ae.discriminators.aids import (
    DISCRIMINATOR_AIDS,
    R1,
    AidedDiscriminator,
    DiffAug,
    DiscriminatorAid,
    EightBit,
    LeCam,
    with_aids,
)
from ldm_ae.discriminators.dino import DINODiscriminator
from ldm_ae.discriminators.interface import Discriminator, DiscriminatorOutput, DiscriminatorPass
from ldm_ae.discriminators.multi_scale import MultiScaleDiscriminator
from ldm_ae.discriminators.patchgan import PatchDiscriminator
from ldm_ae.discriminators.projected import ProjectedDiscriminator
from ldm_ae.discriminators.spectral_patchgan import SpectralPatchDiscriminator
from ldm_ae.discriminators.stylegan2 import StyleGAN2Discriminator

__all__ = [
    "DISCRIMINATORS",
    "DISCRIMINATOR_AIDS",
    "R1",
    "AidedDiscriminator",
    "DINODiscriminator",
    "DiffAug",
    "Discriminator",
    "DiscriminatorAid",
    "DiscriminatorOutput",
    "DiscriminatorPass",
    "EightBit",
    "LeCam",
    "MultiScaleDiscriminator",
    "PatchDiscriminator",
    "ProjectedDiscriminator",
    "SpectralPatchDiscriminator",
    "StyleGAN2Discriminator",
    "with_aids",
]

DISCRIMINATORS: Registry[Discriminator] = Registry(__name__, Discriminator, "discriminator")  # type: ignore[type-abstract]
"""Every discriminator by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, DISCRIMINATORS, DISCRIMINATOR_AIDS)
