"""The diffusion score of each compared model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldm_ae.comparison.result import ModelResult
from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.data import ImageTransform, Source, Subset, WholeTransform
from ldm_ae.evaluation import CannotScoreError
from ldm_ae.evaluation.warnings import overflow_warning
from ldm_ae.models import Autoencoder
from ldm_ae.training.diffusion.score import diffusion_score
from ldm_ae.training.diffusion.score_protocol import DiffusionImages, DiffusionScoreConfig, split_images

NAME = "diffusion"


@dataclass(frozen=True, kw_only=True)
class DiffusionPlan:
    """The diffusion score that a comparison adds."""

    steps: int
    """Training steps of the small diffusion networks."""
    train: Source | None = None
    """Images to train them on, scored on those of the comparison; None splits the latter."""
    train_name: str = ""
    """Their origin in words."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"diffusion is {self.steps} steps; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DiffusionRunner:
    """Computation of the diffusion score of any model, on the same images under the same budget."""

    images: DiffusionImages
    config: DiffusionScoreConfig
    folder: Path
    device: str | torch.device

    def run(
        self, result: ModelResult, model: Autoencoder, progress: Callable[[str, int, int], None] | None
    ) -> ModelResult:
        """Return the result with the diffusion score, or with the reason why the model has none."""
        stage = None if progress is None else lambda text, done, total: progress(f"{result.name}: {text}", done, total)
        try:
            found = diffusion_score(
                model, self.folder, images=self.images, config=self.config, device=self.device, progress=stage
            )
        except CannotScoreError as error:
            return replace(result, skipped=result.skipped | {NAME: str(error)})
        redone = overflow_warning(found.protocol["model"]["fp32_fallbacks"], "the diffusion score")
        return replace(
            result, scores=result.scores | found.scores, infos=result.infos | found.infos, samples=found.samples,
            samples_compared=found.compared_images, warnings=[*result.warnings, *redone],
            flow_losses=found.flow_losses, protocol=result.protocol | {NAME: found.protocol},
        )  # fmt: skip


def diffusion_runner(
    plan: DiffusionPlan,
    source: Source,
    count: int,
    transform: ImageTransform | WholeTransform,
    folder: Path,
    *,
    source_name: str,
    device: str | torch.device,
    **models: Any,
) -> DiffusionRunner:
    """Return the computation for the images of a comparison.

    Args:
        plan: Budget and images.
        source: The images of the comparison.
        count: Number of images, the first of them.
        transform: Their transform.
        folder: Folder of the results.
        source_name: Origin of the images, in words.
        device: Device to run on; it decides on the size of the networks.
        models: How models encode and decode: fields of `DiffusionScoreConfig`.

    Raises:
        UserError: Images of several sizes, or too few.
    """
    if not isinstance(transform, ImageTransform):
        raise UserError("a diffusion score needs images of one size; remove --size native, or --diffusion")
    own = Subset(source, range(count))
    images = (
        split_images(own, transform, name=source_name)
        if plan.train is None
        else split_images(plan.train, transform, name=f"{plan.train_name}; held out: {source_name}", held_out=own)
    )
    place = pick_device(device) if isinstance(device, str) else device
    config = DiffusionScoreConfig.for_device(place, steps=plan.steps, **models)
    return DiffusionRunner(images=images, config=config, folder=folder, device=place)
