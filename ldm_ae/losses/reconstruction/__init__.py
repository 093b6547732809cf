"""The reconstruction losses, one per file. A new loss is a new file with a `ReconstructionLoss` class in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import Registry, export
from ldm_ae.losses.reconstruction.alpha_aware import AlphaAware
from ldm_ae.losses.reconstruction.bernoulli import Bernoulli
from ldm_ae.losses.reconstruction.charbonnier import Charbonnier
from ldm_ae.losses.reconstruction.discretized_logistic import DiscretizedLogistic
from ldm_ae.losses.reconstruction.gaussian import Gaussian
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss
from ldm_ae.losses.reconstruction.l1 import L1
from ldm_ae.losses.reconstruction.l2 import L2
from ldm_ae.losses.reconstruction.lattice import LatticeError
from ldm_ae.losses.reconstruction.likelihood import Likelihood, build_likelihood, describe_likelihood
from ldm_ae.losses.reconstruction.opponent import OpponentL1
from ldm_ae.losses.reconstruction.weighted_sum import WeightedReconstruction

__all__ = [
    "L1",
    "L2",
    "RECONSTRUCTION_LOSSES",
    "AlphaAware",
    "Bernoulli",
    "Charbonnier",
    "DiscretizedLogistic",
    "Gaussian",
    "LatticeError",
    "Likelihood",
    "OpponentL1",
    "ReconstructionLoss",
    "WeightedReconstruction",
    "build_likelihood",
    "describe_likelihood",
]

RECONSTRUCTION_LOSSES: Registry[ReconstructionLoss] = Registry(__name__, ReconstructionLoss, "reconstruction loss")  # type: ignore[type-abstract]
"""Every reconstruction loss by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, RECONSTRUCTION_LOSSES)
