"""The options of a diffusion run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import Precision


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The network, the loop, and what a run writes when. A step is one update of the network."""

    model: Literal["unet", "dit"] = "unet"
    """Architecture; unet ignores labels, dit is conditioned on them."""
    objective: Literal["flow", "ddpm"] = "flow"
    """Flow matching, or prediction of the noise."""
    width: int = 128
    """Channels of the highest-resolution level, or of a token; a multiple of 32."""
    depth: int = 2
    """Blocks per level, or transformer blocks."""
    steps: int = 10_000
    """Total number of steps."""
    batch_size: int = 32
    """Latents per step and process."""
    learning_rate: float = 2e-4
    """Learning rate of AdamW."""
    ema_decay: float = 0.999
    """Decay of the average of the weights, which is sampled from and saved; 0 saves the last weights."""
    precision: Precision = "auto"
    """Autocast dtype; auto is bf16 on a device that is fast in it, fp32 on others."""
    seed: int = 0
    """Seed of weights, order, noise and previews."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    sample_every: int = 1000
    """Steps between previews in samples/, always from the same noise; 0 for none."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Accelerate's trackers; give no name for none."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "depth", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"{option(name)} is {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "sample_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{option(name)} is {getattr(self, name)}; it must be at least 0")
        if self.width < 32 or self.width % 32:
            raise UserError(f"--width is {self.width}; it must be a multiple of 32")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay is {self.ema_decay}; it must be in [0, 1)")
        if not self.learning_rate > 0:
            raise UserError(f"--learning-rate is {self.learning_rate}; it must be above 0")


def option(name: str) -> str:
    """Return the option of the command line that sets a field."""
    return f"--{name.replace('_', '-')}"
