"""What the golden tests compute from: images and weights that are the same bytes on every machine, and two runs."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ldm_ae.training import Stopped, Trainer
from ldm_ae.training.run import train

IMAGES = 12
STEPS, STOP = 6, 3
"""Steps of a run, and the step at which the artefacts' runs were stopped."""


# ---------------------------------------------------------------------------------------------------------- exact bytes


def integers(shape: Sequence[int], seed: int, low: int = -8, high: int = 8) -> Tensor:
    """Return whole numbers in [low, high] as int64, scattered by arithmetic that has no rounding."""
    count = int(torch.tensor(list(shape)).prod()) if shape else 1
    numbers = (torch.arange(count) + 100_003 * seed) * 2654435761 & 0xFFFFFFFF
    numbers = (numbers ^ numbers >> 16) * 0x45D9F3B & 0xFFFFFFFF
    return (low + (numbers ^ numbers >> 16) % (high - low + 1)).reshape(tuple(shape))


def set_exact_weights(module: nn.Module, seed: int, divisor: float = 1.0) -> None:
    """Set each floating-point tensor to whole numbers / `divisor`, those of normalizations to 1 + that."""
    for number, (name, tensor) in enumerate(sorted(module.state_dict().items())):
        if tensor.is_floating_point():
            normalization = tensor.ndim == 1 and name.endswith("weight")
            tensor.copy_(normalization + integers(tensor.shape, seed + number) / divisor)


def write_bitmap(path: Path, pixels: Tensor) -> None:
    """Write (H, W, 3) uint8 RGB as a BMP file of 24 bits, whose bytes depend on no library."""
    height, width, _ = pixels.shape
    rows = torch.zeros(height, -(-3 * width // 4) * 4, dtype=torch.uint8)
    rows[:, : 3 * width] = pixels.flip(0, 2).reshape(height, -1)
    header = struct.pack("<2sIHHI", b"BM", 54 + rows.numel(), 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, rows.numel(), 2835, 2835, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + rows.numpy().tobytes())


def write_images(folder: Path) -> Path:
    """Write twelve BMP files in two class folders, sizes from 34 to 45 pixels: colour ramps with a coarse pattern."""
    for number in range(IMAGES):
        height, width = 34 + number, 45 - number
        down, right = torch.arange(height)[:, None], torch.arange(width)[None, :]
        pattern = integers((4, 4, 3), number, 0, 100)[down * 4 // height, right * 4 // width]
        ramps = torch.stack([down * 3 + right, down + right * (number % 4), (height - down) * 2 + 0 * right], dim=-1)
        write_bitmap(folder / ("b" if number % 3 else "a") / f"{number:02d}.bmp", (pattern + ramps).to(torch.uint8))
    return folder


# ----------------------------------------------------------------------------------------------------------------- runs

_NETWORK = {
    "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False,
}  # fmt: skip
_TRAINING = {
    "max_steps": STEPS, "batch_size": 2, "accumulation": 2, "precision": "fp32", "log_every": 1, "sample_every": 3,
    "validate_every": 3, "checkpoint_every": 3, "keep_checkpoints": 1, "trackers": [],
}  # fmt: skip
# Adam divides by the size of a gradient. With its usual eps of 1e-8 a weight whose gradient is nothing but rounding
# moves a whole step in a direction that differs from CPU to CPU; with 1e-4 it stays where it is.
_ADAM = {"betas": [0.5, 0.9], "eps": 1e-4}
CONFIGS: dict[str, dict[str, Any]] = {
    # LPIPS has random features: that needs no download, and they follow from the run's seed.
    "kl_gan": {
        "seed": 1,
        "model": {"class_path": "ldm_ae.models.KLAutoencoder", "init_args": _NETWORK},
        "data": {"resolution": 32, "workers": 0, "validation_images": 3},
        "objective": {
            "reduction": "mean",
            "reconstruction": {"class_path": "ldm_ae.losses.L1"},
            "perceptual": {
                "class_path": "ldm_ae.losses.LPIPS",
                "init_args": {"net": "squeeze", "pretrained": False},
            },
            "perceptual_weight": 0.5,
            "regularization_weights": {"kl": 1e-2},
            "learned_log_variance": True,
            "adversarial": {"class_path": "ldm_ae.losses.HingeLoss"},
            "gan_weight": 0.8,
            "adaptive_gan_weight": True,
            "discriminator_start": 2,
            "discriminator_warmup_steps": 1,
            "gan_ramp_steps": 2,
        },
        "discriminator": {
            "class_path": "ldm_ae.discriminators.PatchDiscriminator",
            "init_args": {"n_layers": 1, "ndf": 4, "norm": "batch"},
        },
        "optimizer": {"learning_rate": 1e-3, "options": _ADAM, "schedule": "cosine", "warmup_steps": 2},
        "discriminator_optimizer": {"learning_rate": 1e-3, "options": _ADAM},
        "training": _TRAINING | {"ema_decay": 0.9, "max_grad_norm": 1.0},
    },
    "vq_gan": {
        "seed": 2,
        "model": {
            "class_path": "ldm_ae.models.VQAutoencoder",
            "init_args": _NETWORK | {
                "quantizer": {
                    "class_path": "ldm_ae.quantizers.VQ",
                    "init_args": {
                        "codebook_size": 16, "codebook_dim": 4,
                        "care": {"kmeans_iterations": 2, "restart_below": 0.5, "usage_decay": 0.5},
                    },
                },
            },
        },
        "data": {"resolution": 32, "workers": 0, "validation_images": 3, "crop": "center"},
        "objective": {
            "reduction": "ldm",
            "reconstruction": {"class_path": "ldm_ae.losses.L2"},
            "regularization_weights": {"codebook": 1.0, "commitment": 1.0},
            "adversarial": {"class_path": "ldm_ae.losses.VanillaLoss"},
            "gan_weight": 200.0,
            "adaptive_gan_weight": False,
        },
        "discriminator": {
            "class_path": "ldm_ae.discriminators.PatchDiscriminator",
            "init_args": {"n_layers": 1, "ndf": 4, "norm": "group"},
        },
        "optimizer": {"class_path": "torch.optim.AdamW", "learning_rate": 2e-3, "options": _ADAM},
        "discriminator_optimizer": {"class_path": "torch.optim.AdamW", "learning_rate": 2e-3, "options": _ADAM},
        "training": _TRAINING,
    },
}  # fmt: skip
"""The runs whose losses are expected; the artefacts' runs have the same configurations."""


def train_golden(name: str, folder: Path, images: Path) -> Path:
    """Train a run of `CONFIGS` in `folder`/`name` from its start; return the run directory."""
    config = CONFIGS[name] | {"out": str(folder / name)}
    config["data"] = config["data"] | {"train": str(images)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return run_training(["--config", str(path)])


def run_training(arguments: Sequence[str]) -> Path:
    """Train on one thread, which fixes the order of sums, independently of earlier runs in this process."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(list(arguments))


@contextmanager
def stop_at(step: int) -> Iterator[None]:
    """Send SIGTERM to this process after `step` steps of the training within, as a scheduler does."""
    plain_step = Trainer.train_step

    def step_and_signal(self: Trainer, batches: Any) -> Any:
        result = plain_step(self, batches)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with patch.object(Trainer, "train_step", step_and_signal):
        try:
            yield
        except Stopped:
            return
    raise AssertionError(f"the training ended before step {step}")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without times and memory, which depend on the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = ("seconds", "images_per_second", "peak_memory_bytes")
    return [{key: value for key, value in line.items() if key not in measured} for line in lines]
