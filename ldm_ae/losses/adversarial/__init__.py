"""The adversarial losses, one per file. A new loss is a new file with an `AdversarialLoss` class in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import Registry, export
from ldm_ae.losses.adversarial.hinge import HingeLoss
from ldm_ae.losses.adversarial.interface import AdversarialLoss
from ldm_ae.losses.adversarial.non_saturating import NonSaturatingLoss
from ldm_ae.losses.adversarial.vanilla import VanillaLoss

__all__ = ["ADVERSARIAL_LOSSES", "AdversarialLoss", "HingeLoss", "NonSaturatingLoss", "VanillaLoss"]

ADVERSARIAL_LOSSES: Registry[AdversarialLoss] = Registry(__name__, AdversarialLoss, "adversarial loss")  # type: ignore[type-abstract]
"""Every adversarial loss by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, ADVERSARIAL_LOSSES)
