"""The results of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import JSON, Group, ScoreInfo
from ldm_ae.evaluation.warnings import ModelWarning, warned

GROUPS: Mapping[Group, str] = {
    "reconstruction": "Reconstruction",
    "rate": "Rate",
    "latents": "Latents",
    "diffusion": "Will it diffuse?",
    "cost": "Cost",
}
"""Titles of the groups of scores, in their order."""
NOT_COMPARED = frozenset({"count", "latent_mean", "scaling_factor"})
"""Scores that describe a model or the images, and compare nothing; metrics.json has them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """An image of the page."""

    key: str
    image: Tensor
    """(3, H, W) uint8."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores of this image alone, by key."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Validation scores of a training run."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelResult:
    """All results of one model. `scores`, `details` and `protocol` are JSON values."""

    name: str
    """Short name that no other model of the comparison has."""
    model: str
    """The model as the user wrote it."""
    scores: dict[str, float]
    baseline: dict[str, float]
    """Scores of a bicubic thumbnail of about as many numbers as the latents, by the same keys."""
    infos: dict[str, ScoreInfo]
    """Display and explanation of each score, by its key."""
    details: dict[str, dict[str, JSON]]
    """Results that are not single numbers, by the metric's name."""
    protocol: dict[str, Any]
    """The protocol of this model's scores."""
    skipped: dict[str, str]
    """Reasons why scores are missing, by the scores' names."""
    pictures: list[Shown]
    """Reconstructions of the first images."""
    images: int
    """Number of images of the scores."""
    warnings: list[ModelWarning] = field(default_factory=list)
    """Faults of the model that its scores do not show."""
    samples_compared: int = 0
    """Number of samples and held-out images of the diffusion score, the smaller of them; 0 without such a score."""
    folder: str | None = None
    """Folder of the model's own report, relative to that of the comparison."""
    samples: Tensor | None = None
    """Samples of the small diffusion network, (N, 3, H, W) uint8."""
    flow_losses: dict[float, float] = field(default_factory=dict)
    """Loss of the small diffusion network by noise level."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Validation scores during training, by key; only of a run directory."""

    def info(self, key: str) -> ScoreInfo:
        """Return the explanation of a score."""
        return self.infos.get(key) or ScoreInfo(label=key)

    def caution(self, key: str) -> str:
        """Return why a score is not yet reliable, as it is over few images; empty where it is."""
        info = self.info(key)
        return info.caution(self.samples_compared if info.group == "diffusion" else self.images)

    def warned(self, key: str) -> str:
        """Return why a fault of the model makes a score incomparable with that of others; empty where none does."""
        return warned(key, self.warnings)


def score_infos(models: Sequence[ModelResult]) -> dict[str, ScoreInfo]:
    """Return the scores that any model has and that are compared, by group and in the order of their first model."""
    found: dict[str, ScoreInfo] = {}
    for model in models:
        for key in model.scores:
            if key not in NOT_COMPARED:
                found.setdefault(key, model.info(key))
    return {key: info for group in GROUPS for key, info in found.items() if info.group == group}


def best_models(models: Sequence[ModelResult], key: str) -> list[str]:
    """Return the names of the models with the best value of a score: several where they are equal, none where fewer
    than two models have the score, where all are equal, or where neither direction is better. A model with a warning on
    the score is not ranked by it."""
    values = {model.name: model.scores[key] for model in models if key in model.scores and not model.warned(key)}
    info = next((model.info(key) for model in models if key in model.scores), None)
    if info is None or not info.direction or len(set(values.values())) < 2:
        return []
    best = (max if info.direction == "higher" else min)(values.values())
    return [name for name, value in values.items() if value == best]


def caution_of(models: Sequence[ModelResult], key: str) -> str:
    """Return why a score of any model is not yet reliable, as then the ranking is not either; empty where all are."""
    return next((found for model in models if key in model.scores and (found := model.caution(key))), "")
