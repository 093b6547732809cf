"""The regularizers, one per file. A new one is a new file with a `Regularizer` class in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import Registry, export
from ldm_ae.regularizers.distillation import Distillation
from ldm_ae.regularizers.gaussian_noise import GaussianNoise
from ldm_ae.regularizers.identity import Identity
from ldm_ae.regularizers.interface import Regularized, Regularizer

__all__ = ["REGULARIZERS", "Distillation", "GaussianNoise", "Identity", "Regularized", "Regularizer"]

REGULARIZERS: Registry[Regularizer] = Registry(__name__, Regularizer, "regularizer")  # type: ignore[type-abstract]
"""Every regularizer by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, REGULARIZERS)
