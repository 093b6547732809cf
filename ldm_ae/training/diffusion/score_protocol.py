"""The fixed protocol of the diffusion score: its images and its budget, equal for every model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import Precision
from ldm_ae.data import ImageTransform, Source, Subset, split_holdout
from ldm_ae.training.diffusion.config import DiffusionConfig
from ldm_ae.training.diffusion.score_network import PIXELS_OF_A_TOKEN
from ldm_ae.training.diffusion.trainer import MAX_GRAD_NORM

VERSION = 1
"""Number of the protocol, which counts changes of the code that change scores."""
HELD_OUT_FRACTION, MOST_HELD_OUT = 0.25, 10_000
"""Images held out from a single source by default: this fraction, and at most so many."""


@dataclass(frozen=True, kw_only=True)
class DiffusionImages:
    """The images of a diffusion score, which are the same for every model; `split_images` makes them."""

    train: Source
    """Images whose latents the diffusion network learns."""
    held_out: Source
    """Other images, with which the network's loss is measured and its samples are compared."""
    transform: ImageTransform
    """Transform to a square, without randomness."""
    name: str
    """Origin of the images, and the rule by which they are split, in words."""

    def __post_init__(self) -> None:
        if self.transform.is_random or self.transform.height != self.transform.width:
            raise UserError("a diffusion score needs square images without random crops; give crop center and one size")
        if len(self.train) < 2 or len(self.held_out) < 2:
            raise UserError(
                f"a diffusion score needs at least 2 images to train on and 2 that are held out, got {len(self.train)} "
                f"and {len(self.held_out)}; give more images"
            )

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.transform.height

    def identity(self) -> dict[str, Any]:
        """Return JSON values that change if other images are used: hashes of keys and file sizes, and the transform."""
        return {
            "train": _fingerprint(self.train),
            "held_out": _fingerprint(self.held_out),
            "transform": self.transform.describe(),
        }


def split_images(
    source: Source,
    transform: ImageTransform,
    *,
    name: str,
    held_out: Source | int | None = None,
) -> DiffusionImages:
    """Return the images of a diffusion score from one source, or from two.

    Args:
        source: The images to train on, and, unless `held_out` is a source, to hold some out from.
        transform: Transform to a square, without randomness.
        name: Origin of the images, in words.
        held_out: Another source, or the number of images to hold out from `source`: those with the smallest hashed
            keys, as in training. None holds out a quarter of them, at most 10,000.

    Raises:
        UserError: There are too few images.
    """
    if isinstance(held_out, Source):
        return DiffusionImages(train=source, held_out=held_out, transform=transform, name=name)
    if held_out is None:
        held_out = min(round(len(source) * HELD_OUT_FRACTION), MOST_HELD_OUT)
    train, rest = split_holdout(source, held_out, seed=0)
    rule = f"{name}; {len(rest)} of {len(source)} images held out by the hashes of their keys"
    return DiffusionImages(train=Subset(source, train), held_out=Subset(source, rest), transform=transform, name=rule)


@dataclass(frozen=True, kw_only=True)
class DiffusionScoreConfig:
    """The budget of a diffusion score. The defaults suit a CPU and images of 64 to 128 pixels."""

    steps: int = 1000
    """Updates of the diffusion network."""
    batch_size: int = 64
    """Latents of a step."""
    width: int = 128
    """Channels of a token; a multiple of 32."""
    depth: int = 4
    """Transformer blocks."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    samples: int = 256
    """Number of samples."""
    sampling_steps: int = 25
    """Steps from noise to a sample."""
    noise_levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Levels in (0, 1) at which the loss is measured: 0 is the latents, 1 is noise alone."""
    seed: int = 0
    """Seed of weights, order, noise and samples."""
    precision: Precision = "fp32"
    """Autocast dtype in training, not fp16; losses and samples are computed in fp32."""
    model_precision: Precision = "fp32"
    """Precision of the autoencoder."""
    model_batch_size: int = 16
    """Images that are encoded or decoded at a time; no part of the protocol."""
    workers: int = 0
    """Processes that decode image files; no part of the protocol."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "depth", "sampling_steps", "model_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of a diffusion score must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} of a diffusion score must be at least 0, got {getattr(self, name)}")
        if self.width < 32 or self.width % 32:
            raise UserError(f"width of a diffusion score must be a multiple of 32, got {self.width}")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate of a diffusion score must be above 0, got {self.learning_rate}")
        if self.precision == "fp16":
            raise UserError("precision of a diffusion score is fp16; it must be auto, bf16 or fp32")
        if self.samples < 2:
            raise UserError(f"samples of a diffusion score must be at least 2, got {self.samples}")
        if not self.noise_levels or not all(0 < level < 1 for level in self.noise_levels):
            raise UserError(f"noise_levels must be numbers between 0 and 1, got {self.noise_levels}")

    @property
    def ema_decay(self) -> float:
        """Decay of the average of the weights, over about the last tenth of the steps."""
        return max(1 - 10 / self.steps, 0.9)

    def training(self) -> DiffusionConfig:
        """Return the options of the diffusion run."""
        return DiffusionConfig(
            model="dit", objective="flow", width=self.width, depth=self.depth, steps=self.steps,
            batch_size=self.batch_size, learning_rate=self.learning_rate, ema_decay=self.ema_decay,
            precision=self.precision, seed=self.seed, log_every=max(self.steps // 20, 1), sample_every=0,
            checkpoint_every=min(max(self.steps // 10, 1), 1000), keep_checkpoints=1, trackers=(),
        )  # fmt: skip

    @classmethod
    def for_device(cls, device: torch.device, **changes: Any) -> DiffusionScoreConfig:
        """Return the defaults for a kind of device, with changes by name: on accelerators a larger network, larger
        batches and more samples, for images of 256 pixels."""
        larger: dict[str, Any] = dict(
            width=384, depth=12, batch_size=256, learning_rate=3e-4, samples=2048, precision="bf16",
            model_batch_size=32,
        )  # fmt: skip
        return cls(**({} if device.type == "cpu" else larger) | changes)


def describe(images: DiffusionImages, config: DiffusionScoreConfig) -> dict[str, Any]:
    """Return the protocol as JSON values: everything that changes a score and is the same for all models.

    Args:
        images: The images.
        config: The budget, with precisions other than auto.
    """
    return {
        "version": VERSION,
        "network": {
            "class": "DiTTransformer2DModel", "width": config.width, "depth": config.depth, "classes": 0,
            "pixels_of_a_token": PIXELS_OF_A_TOKEN,
        },
        "training": {
            "objective": "flow", "steps": config.steps, "batch_size": config.batch_size, "optimizer": "AdamW",
            "learning_rate": config.learning_rate, "ema_decay": config.ema_decay, "max_grad_norm": MAX_GRAD_NORM,
            "precision": config.precision, "seed": config.seed,
        },
        "latents": {
            "posterior": "samples, drawn anew in each epoch where there are moments",
            "normalization": "each channel to mean 0 and standard deviation 1, over a sample of each training image",
            "model_precision": config.model_precision,
        },
        "flow_loss": {"noise_levels": list(config.noise_levels), "latents": "samples of the held-out images"},
        "samples": {"count": config.samples, "solver": "DPM-Solver++, second order", "steps": config.sampling_steps},
        "images": images.identity(),
    }  # fmt: skip


def _fingerprint(source: Source) -> dict[str, Any]:
    """Return the number of images, and a hash of their keys and of their files' sizes where those are known."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.key(index)}\n{source.bytes_of(index)}\n".encode())
    return {"images": len(source), "sha256": digest.hexdigest()}
