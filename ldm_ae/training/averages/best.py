"""The length of a run's average that scores best on the run's held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentError

from ldm_ae.core.errors import UserError, reason
from ldm_ae.data import EvaluationLoader
from ldm_ae.data.config import DataConfig
from ldm_ae.evaluation import validate
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views import View
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.training.averages.posthoc import StoredAverages
from ldm_ae.training.changes import CONFIG, saved_config
from ldm_ae.training.config import TrainingConfig
from ldm_ae.training.configuration.parsing import parts_parser
from ldm_ae.training.configuration.phases import each_phase
from ldm_ae.training.validation import Validation, choose_metrics


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of a run's configuration that its validation needs."""

    data: DataConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


class HeldOut(NamedTuple):
    """The validation of a run: its held-out images and its metrics."""

    loader: EvaluationLoader
    validation: Validation
    view: View | None = None
    """`objective.view`."""


class Scored(NamedTuple):
    """An average's scores."""

    length: float
    scores: dict[str, float]
    rank: float
    """Score by `training.best_metric`, with the sign that makes higher better."""


def held_out(run: str | Path, phase: int, device: torch.device, pixels: PixelSpec = RGB) -> HeldOut:
    """Return the held-out images of a run's phase, as its validations read them, and its metrics on `device`.

    `pixels` are the model's images.

    Raises:
        UserError: The run's configuration is missing or damaged, or it has no held-out images.
    """
    saved = saved_config(Path(run))
    if saved is None:
        raise UserError(f"{run} has no {CONFIG}, which names its held-out images; give a length in place of best")
    parser = parts_parser(_Parts)
    try:
        tree = each_phase(saved)[phase - 1]
        parsed = parser.parse_object({name: tree[name] for name in _Parts.__dataclass_fields__ if name in tree})
        parts: Any = parser.instantiate(parsed)
    except (ArgumentError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{Path(run) / CONFIG} is not valid: {reason(error)}") from error
    # The sizes of training images, which would be read from every file, do not matter here.
    data = dataclasses.replace(parts.data, sizes=None, area=None, multiple=None, max_ratio=None)
    batch_size = parts.training.batch_size
    _, loader = data.loaders(batch_size=batch_size, accumulation=1, seed=0, rank=0, world_size=1, pixels=pixels)
    if loader is None:
        raise UserError(f"{run} has no held-out images (data.validation_images is 0); give a length in place of best")
    perceptual = parts.objective.perceptual
    if perceptual is not None:
        perceptual.to(device)
    return HeldOut(loader, choose_metrics(parts.training.best_metric, perceptual), parts.objective.view)


def score_lengths(
    stored: StoredAverages, lengths: Sequence[float], held: HeldOut, device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> list[Scored]:  # fmt: skip
    """Return the scores of the averages of several lengths, in float32, in the order of `lengths`.

    Args:
        stored: The averages of a run.
        lengths: Lengths within its range.
        held: Its held-out images.
        device: The device to run on, where the metrics' networks are.
        progress: Called after every length with the number of lengths done.
    """
    found: list[Scored] = []
    for length in lengths:
        scores = validate(stored.model(length).to(device), held.loader, metrics=held.validation.metrics, view=held.view)
        found.append(Scored(length, scores, held.validation.rank(scores)))
        if progress is not None:
            progress(len(found))
    return found


def best_of(scored: Sequence[Scored]) -> Scored:
    """Return the first entry with the best score."""
    return max(scored, key=lambda entry: entry.rank)


def table(scored: Sequence[Scored], metric: str) -> list[str]:
    """Return the lines of a table of all scores, with a mark at the best by `metric`."""
    names = list(scored[0].scores)
    widths = [max(len(name), 9) for name in names]
    lines = ["  ".join(["length", *(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))])]
    for entry in scored:
        values = (f"{entry.scores[name]:>{width}.4f}" for name, width in zip(names, widths, strict=True))
        mark = f"  best by {metric}" if entry is best_of(scored) else ""
        lines.append("  ".join([f"{entry.length:<6.3g}", *values]) + mark)
    return lines
