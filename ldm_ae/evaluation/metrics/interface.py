"""The complete interface of a metric to evaluation, validation and the report.

A metric is one class in one file of this folder, or of a plugin. It describes itself (label, direction, unit,
explanation), so that the report and the terminal can explain any metric.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.latent_summary import LatentSummary
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views import View
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.priors import SavedPrior

if TYPE_CHECKING:
    from ldm_ae.evaluation.metrics.codebook import CodebookUsage

Direction = Literal["higher", "lower", ""]
"""The better values; empty where neither direction is better."""

Group = Literal["reconstruction", "rate", "latents", "diffusion", "cost"]
"""The part of a comparison of models in which a score is shown."""
DEFAULT_GROUP: Group = "reconstruction"

Scores = Mapping[str, float]
"""Scores by their keys in metrics.json."""

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""A value that a JSON file can hold; numbers are finite."""


class CannotScoreError(UserError):
    """Reason why a metric has no value for these images. Only that metric is skipped; the protocol gives the reason."""


@dataclass(frozen=True, kw_only=True)
class ScoreInfo:
    """Display and explanation of one number of metrics.json."""

    label: str
    direction: Direction = ""
    unit: str = ""
    explanation: str = ""
    """Explanation in one or two sentences."""
    decimals: int = 3
    """Digits after the decimal point under an image."""
    reliable_images: int = 1
    """Smallest number of images over which the score can be trusted; over fewer it is shown with a caution."""
    group: Group = DEFAULT_GROUP

    @property
    def title(self) -> str:
        """Label with the unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def arrow(self) -> str:
        """Direction of better values: ↑, ↓ or an empty string."""
        return {"higher": "↑", "lower": "↓", "": ""}[self.direction]

    @property
    def better(self) -> str:
        """Direction as a sentence."""
        return {"higher": "Higher is better.", "lower": "Lower is better.", "": ""}[self.direction]

    def text(self, value: float) -> str:
        """Return a value with its unit, in the digits of a single image's."""
        return f"{value:.{self.decimals}f} {self.unit}".rstrip()

    def caution(self, images: int) -> str:
        """Return why the score over so many images is not yet reliable; empty where it is."""
        if images >= self.reliable_images:
            return ""
        return f"over {images:,} image{'' if images == 1 else 's'}, and reliable from {self.reliable_images:,} on"

    def wins(self, value: float, other: float) -> bool:
        """Return whether `value` is better than `other`; False where there is no direction."""
        return value > other if self.direction == "higher" else self.direction == "lower" and value < other


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Requirements on the images; the metric is skipped where they are not met."""

    images: int = 1
    side: int = 1
    """Smallest valid height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Context of the metrics of one evaluation or validation."""

    model: Autoencoder | None
    """The model on its device and in the precision of the evaluation; in fp16 it computes a batch that overflows again
    in float32. None where images are compared without a model."""
    device: torch.device
    model_hash: str | None = None
    """The model's `model_hash`, where there is a prior."""
    prior: SavedPrior | None = None
    """Prior over the model's codes, where a command was given one."""
    latents: LatentSummary | None = None
    """Statistics of the latents that an evaluation gathers for its report; None in a validation."""
    codes: CodebookUsage | None = None
    """Counts of a discrete model's codes in an evaluation; None in a validation."""

    view: View | None = None
    """How networks that know RGB only see other images; None for the default of the images."""
    images: PixelSpec = RGB
    """The images that are compared where there is no model."""

    @property
    def pixels(self) -> PixelSpec:
        """The images that are scored."""
        return self.images if self.model is None else self.model.pixel_spec


class Metric(ABC):
    """A score over a set of images.

    Evaluation calls `require`, `prepare` and `reset`, then `update` for each batch, then `compute`. Each of these calls
    may raise `CannotScoreError`.
    """

    name: str
    """Key in metrics.json, and the name by which commands and configurations choose the metric."""
    label: str = ""
    """Display name; empty for `name`."""
    direction: Direction = ""
    unit: str = ""
    explanation: str = ""
    """Explanation for the report, in one or two sentences."""
    decimals: int = 3
    reliable_images: int = 1
    """Smallest number of images over which the score can be trusted; reports show it with a caution over fewer."""
    group: Group = DEFAULT_GROUP
    """Group of the metric's scores, except for those of `scores` that state another than the default."""
    needs: Needs = Needs()
    pixels: PixelSpec | None = None
    """Supported images; None for any. A metric of RGB images that `compares_images` scores the view of others, and the
    mean over its RGB images for each image; any other metric is skipped for a model of other images."""
    scores: ClassVar[Mapping[str, ScoreInfo]] = {}
    """Explanation of each number by its key, for a metric that computes several."""
    optional: bool = False
    """Whether a model may lack this score without a note; only for metrics of the default set."""
    absent: Mapping[str, str] = MappingProxyType({})
    """Reasons why other scores are missing for which this one stands, by their names; reports list them as skipped."""
    compares_images: bool = True
    """Whether the bicubic thumbnail is also scored, under `bicubic_KEY`."""

    def require(self, shape: tuple[int, ...]) -> None:
        """Raise `CannotScoreError` if the metric cannot take images (B, C, H, W) of this shape."""
        height, width = shape[-2:]
        if min(height, width) < self.needs.side:
            side = self.needs.side
            raise CannotScoreError(
                f"{self.info().label} needs images of at least {side}x{side} pixels, got {height}x{width}"
            )

    def prepare(self, setting: Setting) -> None:  # noqa: B027 - a hook; most metrics need nothing
        """Take the required data of the model, and move the metric's networks to the device."""

    @abstractmethod
    def reset(self) -> None:
        """Discard all images."""

    def take_labels(self, labels: Tensor | None) -> None:  # noqa: B027 - a hook; most metrics need no labels
        """Take the labels (B,) int64 of the batch of the next `update`, -1 where an image has none; None if there are
        none at all."""

    @abstractmethod
    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch.

        Args:
            reconstructions: (B, C, H, W) float32 in [-1, 1], clamped and rounded to the values of the images' files,
                such as the levels of 8-bit images. Where data is missing, both are `ldm_ae.images.missing.MISSING`.
            pixel_values: (B, C, H, W) float32 in [-1, 1], rounded likewise.
            posterior: Posterior of the batch; None for the thumbnail, which has none.

        Returns:
            Values of each image, (B,) by key; empty where single images have no value.
        """

    @abstractmethod
    def compute(self) -> float | Scores:
        """Return the score over all images, or several by key; an empty mapping where the model has no such score."""

    def details(self) -> Mapping[str, JSON]:
        """Return results over all images that are not single numbers, such as a curve, for metrics.json. It is called
        after `compute`, unless that raised `CannotScoreError`."""
        return {}

    def for_baseline(self) -> Metric:
        """Return an empty metric that scores another reconstruction of the same images, updated after this one."""
        twin = copy.copy(self)
        twin.reset()
        return twin

    def protocol(self) -> dict[str, object]:
        """Return the entries that the protocol needs beside the metric's name, as JSON values by key."""
        return {}

    def info(self, key: str | None = None) -> ScoreInfo:
        """Return the explanation of the metric's own score (the default), or of another key that it computes."""
        own = ScoreInfo(
            label=self.label or self.name, direction=self.direction, unit=self.unit, explanation=self.explanation,
            decimals=self.decimals, reliable_images=self.reliable_images, group=self.group,
        )  # fmt: skip
        named = self.scores.get(self.name if key is None else key)
        if named is not None:
            return replace(named, group=self.group) if named.group == DEFAULT_GROUP else named
        return own if key in (None, self.name) else replace(own, label=f"{own.label}: {key}")


class MeanMetric(Metric):
    """Base of metrics whose score is the mean of a value per image; `update` returns `self.keep(values)`."""

    _values: dict[str, list[float]]

    def reset(self) -> None:
        """Discard all images."""
        self._values = {}

    def keep(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Add the values of a batch, (B,) by key, and return them on the CPU."""
        values = {key: value.detach().cpu() for key, value in values.items()}
        for key, value in values.items():
            self._values.setdefault(key, []).extend(value.tolist())
        return values

    def compute(self) -> Scores:
        """Return the mean over the images, by key."""
        return {key: sum(values) / len(values) for key, values in self._values.items()}


class ImageMetric(MeanMetric):
    """Base of metrics that compare each reconstruction with its image; the score is the mean over the images."""

    @abstractmethod
    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the value of each image, (B,); the arguments are those of `Metric.update`."""

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; see `Metric.update`."""
        return self.keep({self.name: self.per_image(reconstructions, pixel_values)})
