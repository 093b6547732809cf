"""The training loop's configuration: length, batch size, precision, intervals."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import Precision


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop: its length, precision, and what it writes when. A step is one update of the autoencoder."""

    max_steps: int = 10_000
    """Steps in all."""
    batch_size: int = 8
    """Images of one forward pass of one process."""
    accumulation: int = 1
    """Forward passes per step."""
    precision: Precision = "auto"
    """Autocast dtype; parameters stay float32. auto is bf16 on a device that is fast in it and fp32 on others; fp16
    needs an accelerator; no is fp32."""
    max_grad_norm: float | None = None
    """Clip each network's gradients to this norm."""
    trainable: list[str] = field(default_factory=lambda: ["*"])
    """Name patterns of the parameters that learn, such as decoder.* and post_quant_conv.*."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, evaluated and exported in their place."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl; each is the mean over them."""
    sample_every: int = 1000
    """Steps between grids of inputs and reconstructions in samples/."""
    validate_every: int = 1000
    """Steps between validations."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, beside the best one."""
    background_saves: bool = True
    """Write checkpoints while training goes on, from a copy on the host: as much memory again as a checkpoint has."""
    max_bad_steps: int = 10
    """Steps in a row that are left out because a loss or a gradient was not finite, before the run stops."""
    best_metric: str = "psnr"
    """Metric of the validation by which the best checkpoint is chosen: psnr, ssim, perceptual (the objective's
    network), or any other metric of which one direction is better, such as msssim."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Accelerate's trackers by name, such as tensorboard and wandb, beside metrics.jsonl."""
    project: str = "ldm_ae"
    """Name of the project in trackers that have projects, such as W&B."""
    run_name: str | None = None
    """Name of the run in trackers; None takes the name of the run directory."""

    def __post_init__(self) -> None:
        counts = "max_steps batch_size accumulation log_every sample_every validate_every checkpoint_every"
        for name in [*counts.split(), "keep_checkpoints", "max_bad_steps"]:
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay is {self.ema_decay}; it must be in [0, 1)")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(f"training.max_grad_norm is {self.max_grad_norm}; it must be above 0, or null for none")
