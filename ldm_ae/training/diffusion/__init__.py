"""Training of a small diffusion model on latents: its options, networks, data and loop, and the diffusion score."""

from ldm_ae.training.diffusion.class_diffusion import ClassDiffusion
from ldm_ae.training.diffusion.config import DiffusionConfig
from ldm_ae.training.diffusion.pipeline_run import train_diffusion
from ldm_ae.training.diffusion.score import DiffusionScore, diffusion_score
from ldm_ae.training.diffusion.score_protocol import DiffusionImages, DiffusionScoreConfig, split_images
from ldm_ae.training.diffusion.trainer import DiffusionTrainer

__all__ = [
    "ClassDiffusion",
    "DiffusionConfig",
    "DiffusionImages",
    "DiffusionScore",
    "DiffusionScoreConfig",
    "DiffusionTrainer",
    "diffusion_score",
    "split_images",
    "train_diffusion",
]
