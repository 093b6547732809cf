"""Training of a small diffusion model on a latent store: its options, networks, data and loop."""

from ldm_ae.training.diffusion.config import DiffusionConfig
from ldm_ae.training.diffusion.trainer import DiffusionTrainer, train_diffusion

__all__ = ["DiffusionConfig", "DiffusionTrainer", "train_diffusion"]
