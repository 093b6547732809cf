"""Training: the two optimization steps, and the loop around them."""

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
