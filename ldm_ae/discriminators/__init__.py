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
from ldm_ae.discriminators.interface import Discriminator, DiscriminatorOutput, DiscriminatorPass
from ldm_ae.discriminators.patchgan import PatchDiscriminator
from ldm_ae.discriminators.spectral_patchgan import SpectralPatchDiscriminator

__all__ = [
    "DISCRIMINATORS",
    "DISCRIMINATOR_AIDS",
    "R1",
    "AidedDiscriminator",
    "DiffAug",
    "Discriminator",
    "DiscriminatorAid",
    "DiscriminatorOutput",
    "DiscriminatorPass",
    "EightBit",
    "LeCam",
    "PatchDiscriminator",
    "SpectralPatchDiscriminator",
    "with_aids",
]

DISCRIMINATORS: Registry[Discriminator] = Registry(__name__, Discriminator, "discriminator")  # type: ignore[type-abstract]
"""Every discriminator by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, DISCRIMINATORS, DISCRIMINATOR_AIDS)
