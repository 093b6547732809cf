"""Training: the two optimization steps, and the loop around them.

The names below are imported on their first use: the options of `ldm-ae train` are checked without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_ae.core.errors import Stopped
    from ldm_ae.training.checkpoints.checkpoint import newest_checkpoint, problems
    from ldm_ae.training.config import TrainingConfig
    from ldm_ae.training.losses import DiscriminatorLoss, GeneratorLoss, TrainingLosses
    from ldm_ae.training.optimizers import OptimizerConfig
    from ldm_ae.training.trainer import Trainer

__all__ = [
    "DiscriminatorLoss",
    "GeneratorLoss",
    "OptimizerConfig",
    "Stopped",
    "Trainer",
    "TrainingConfig",
    "TrainingLosses",
    "newest_checkpoint",
    "problems",
]

_MODULES = {
    "DiscriminatorLoss": "ldm_ae.training.losses",
    "GeneratorLoss": "ldm_ae.training.losses",
    "OptimizerConfig": "ldm_ae.training.optimizers",
    "Stopped": "ldm_ae.core.errors",
    "Trainer": "ldm_ae.training.trainer",
    "TrainingConfig": "ldm_ae.training.config",
    "TrainingLosses": "ldm_ae.training.losses",
    "newest_checkpoint": "ldm_ae.training.checkpoints.checkpoint",
    "problems": "ldm_ae.training.checkpoints.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
