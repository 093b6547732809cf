"""Training of a small diffusion model on latents: its options, networks, data and loop, and the diffusion score."""

from ldm_ae.training.diffusion.config import DiffusionConfig
from ldm_ae.training.diffusion.pipeline_run import train_diffusion
from ldm_ae.training.diffusion.trainer import DiffusionTrainer

__all__ = ["DiffusionConfig", "DiffusionTrainer", "train_diffusion"]
