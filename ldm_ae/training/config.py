"""The training loop's configuration: length, batch size, precision, intervals."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import Precision

SHORTEST_AVERAGE, LONGEST_AVERAGE = 0.001, 0.28
"""Limits of the length of a power-function average. The uniform average of a whole run has 1 / sqrt(12) = 0.2887."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop: its length, precision, and what it writes when. A step is one update of the autoencoder."""

    max_steps: int = 10_000
    """Total number of steps."""
    max_minutes: float | None = None
    """Minutes of training after which the run ends, if `max_steps` does not end it before; it needs a constant schedule
    of the learning rate, with `cooldown_minutes`. Minutes before a resume count; start-up and export do not."""
    batch_size: int = 8
    """Number of images in one forward pass of one process."""
    accumulation: int = 1
    """Number of forward passes per step."""
    precision: Precision = "auto"
    """Autocast dtype; parameters stay float32. auto is bf16 on a device that is fast in it and fp32 on others; fp16
    needs an accelerator."""
    max_grad_norm: float | None = None
    """Clip each network's gradients to this norm."""
    trainable: list[str] = field(default_factory=lambda: ["*"])
    """Name patterns of the parameters to train, such as decoder.* and post_quant_conv.*."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is evaluated and exported in their place."""
    power_ema: bool = False
    """Keep power-function averages of the weights (EDM2, arXiv 2312.02696) and store snapshots of them, from which
    `ldm-ae export RUN OUT --ema LENGTH` makes an average of any length. Without `ema_decay` the first is evaluated."""
    power_ema_lengths: list[float] = field(default_factory=lambda: [0.05, 0.1])
    """Lengths of these averages, sigma_rel: the standard deviation of the averaged steps, as a fraction of the run."""
    power_ema_every: int = 1000
    """Steps between snapshots of them; about 32 in a run allow every length from 0.014 to 0.27. All are kept."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl; each line has the means over these steps."""
    sample_every: int = 1000
    """Steps between grids of inputs and reconstructions in samples/."""
    validate_every: int = 1000
    """Steps between validations."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, in addition to the best one."""
    background_saves: bool = True
    """Write checkpoints while training continues, from a copy in host memory of the size of a checkpoint."""
    max_bad_steps: int = 10
    """Number of consecutive steps skipped because a loss or a gradient was not finite, after which the run stops."""
    best_metric: str = "psnr"
    """Metric of the validation that selects the best checkpoint: psnr, ssim, perceptual (the objective's
    network), or any other metric with a better direction, such as msssim."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Accelerate's trackers by name, such as tensorboard and wandb, in addition to metrics.jsonl."""
    project: str = "ldm_ae"
    """Name of the project in trackers that have projects, such as W&B."""
    run_name: str | None = None
    """Name of the run in trackers; null takes the name of the run directory."""

    def __post_init__(self) -> None:
        counts = "max_steps batch_size accumulation log_every sample_every validate_every checkpoint_every"
        for name in [*counts.split(), "power_ema_every", "keep_checkpoints", "max_bad_steps"]:
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise UserError(f"training.max_minutes is {self.max_minutes:g}; it must be above 0, or null for none")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay is {self.ema_decay}; it must be in [0, 1)")
        for length in self.power_ema_lengths:
            if not SHORTEST_AVERAGE <= length <= LONGEST_AVERAGE:
                raise UserError(
                    f"training.power_ema_lengths has {length:g}; each must be between {SHORTEST_AVERAGE} and "
                    f"{LONGEST_AVERAGE}: the standard deviation of the averaged steps as a fraction of the run"
                )
        if not self.power_ema_lengths or len(set(self.power_ema_lengths)) < len(self.power_ema_lengths):
            raise UserError("training.power_ema_lengths must have one or more different lengths, such as [0.05, 0.1]")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(f"training.max_grad_norm is {self.max_grad_norm}; it must be above 0, or null for none")
