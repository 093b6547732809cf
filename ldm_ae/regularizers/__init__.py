"""The regularizers, one a file. A class registers by lying in this folder."""

from ldm_ae.core.registry import Registry
from ldm_ae.regularizers.gaussian_noise import GaussianNoise
from ldm_ae.regularizers.identity import Identity
from ldm_ae.regularizers.interface import Regularized, Regularizer

REGULARIZERS: Registry[Regularizer] = Registry("ldm_ae.regularizers", Regularizer, "regularizer")  # type: ignore[type-abstract]

__all__ = ["REGULARIZERS", "GaussianNoise", "Identity", "Regularized", "Regularizer"]
