"""The results of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ldm_ae.evaluation.activation_ranges import ActivationRanges
from ldm_ae.evaluation.latent_summary import ChannelSummary
from ldm_ae.evaluation.metrics.codebook import CodebookSummary
from ldm_ae.evaluation.metrics.interface import JSON, ScoreInfo
from ldm_ae.evaluation.warnings import ModelWarning


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One row of the per-image table."""

    key: str
    scores: dict[str, float]
    """Each metric's score of the image, by key, and of its thumbnail, under `bicubic_KEY`."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to show, with its reconstruction and thumbnail. Levels are (3, H, W) uint8; of images that are not
    RGB they are those of a view."""

    row: ImageScores
    original: Tensor
    reconstruction: Tensor
    thumbnail: Tensor
    """The bicubic baseline."""
    latents: Tensor
    """Mode of the posterior, (C, h, w) float32."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The complete results of `evaluate`. `scores`, `details` and `protocol` are JSON values."""

    scores: dict[str, float]
    images: list[ImageScores]
    channels: list[ChannelSummary]
    protocol: dict[str, object]
    first: list[Picture]
    worst: list[Picture]
    """Images with the worst `ranking` scores, the worst first."""
    best: list[Picture]
    """Images with the best `ranking` scores, the best first."""
    activations: ActivationRanges
    """Activations in float32, over the first images."""
    codebook: CodebookSummary | None
    """Use of the codes of a discrete model; None where codes cannot be counted."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons why requested scores are missing, by the scores' names."""
    infos: dict[str, ScoreInfo] = field(default_factory=dict)
    """Display and explanation of each score, by its key; scores of the thumbnail share those of the model."""
    details: dict[str, dict[str, JSON]] = field(default_factory=dict)
    """Results that are not single numbers, such as a curve, by the metric's name."""
    ranking: str | None = None
    """Key of the score by which `worst` and `best` are chosen: the first score that every image has and that has a
    direction, by default PSNR."""
    warnings: list[ModelWarning] = field(default_factory=list)
    """Faults of the model that the scores do not show."""
