"""The diffusion score of an autoencoder: how well a small network learns its latents under a fixed budget.

FOLDER/MODEL/PROTOCOL/        hashes of both
    score.json                the finished score, which is read and not computed again
    samples.safetensors       the samples as 8-bit images
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.models import Autoencoder
from ldm_ae.training.diffusion.score_protocol import DiffusionImages, DiffusionScoreConfig

Progress = Callable[[str, int, int], None]
"""Receives a stage (encoding, training, sampling), the number of its units done, and their total."""


@dataclass(frozen=True, kw_only=True)
class DiffusionScore:
    """The result of `diffusion_score`."""

    scores: dict[str, float]
    """`flow_loss`, the mean over the noise levels; `flow_loss_LEVEL`; `sample_frechet_efficientnet_lite0`, and
    `sample_fid` where the weights of FID's Inception are on this machine."""
    infos: dict[str, ScoreInfo]
    """Display and explanation of each score, by its key."""
    flow_losses: dict[float, float]
    """Loss on held-out images by noise level."""
    samples: Tensor
    """(N, 3, H, W) uint8; sample i of every model starts from the same noise if their latents have the same shape."""
    protocol: dict[str, Any]
    """JSON values: the budget, the images, the network, the normalization, this model's latents, versions."""


def diffusion_score(
    model: Autoencoder,
    folder: str | Path,
    *,
    images: DiffusionImages,
    config: DiffusionScoreConfig,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> DiffusionScore:
    """Train a small diffusion network on a model's latents, and score it and its samples.

    After any interruption the same call resumes; if the score is finished, it is read. Every model and every change of
    the protocol has its own folder inside `folder`.

    Args:
        model: The model, in float32; a copy of it runs.
        folder: Folder of the results of all models.
        images: The images, the same for every model.
        config: The budget, the same for every model.
        device: Device to run on; `auto` picks an accelerator if there is one.
        progress: Called after each unit of work.

    Raises:
        CannotScoreError: The model cannot be scored: its latents, its decoded samples or the network's weights are not
            finite, its latents are constant, or its images have another size. Other models still can be.
        UserError: Another process computes this score, or the images cannot be read.
        Stopped: A signal ended the training; it is saved.
    """
    raise NotImplementedError
