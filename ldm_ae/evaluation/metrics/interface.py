"""What evaluation, validation and the report require of a metric, and all that they require.

A metric is one class in one file of this folder, or of a plugin. It describes itself (label, direction, unit,
explanation), so that the report and the terminal explain a metric that they have never seen.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.latent_summary import LatentSummary
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.priors import SavedPrior

if TYPE_CHECKING:
    from ldm_ae.evaluation.metrics.codebook import CodebookUsage

Direction = Literal["higher", "lower", ""]
"""Which values are better; empty where neither is."""

Scores = Mapping[str, float]
"""Numbers by their keys in metrics.json."""


class CannotScoreError(UserError):
    """Why a metric has no value for these images. The metric alone is skipped, and the protocol gives this reason."""


@dataclass(frozen=True, kw_only=True)
class ScoreInfo:
    """How one number of metrics.json is shown and explained."""

    label: str
    direction: Direction = ""
    unit: str = ""
    explanation: str = ""
    """One or two sentences."""
    decimals: int = 3
    """Digits after the point under a picture."""

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def arrow(self) -> str:
        """Where the better values lie: ↑, ↓ or nothing."""
        return {"higher": "↑", "lower": "↓", "": ""}[self.direction]

    @property
    def better(self) -> str:
        """The direction as a sentence."""
        return {"higher": "Higher is better.", "lower": "Lower is better.", "": ""}[self.direction]

    def wins(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`; never where there is no direction."""
        return value > other if self.direction == "higher" else self.direction == "lower" and value < other


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the images must have, or else the metric is skipped."""

    images: int = 1
    side: int = 1
    """Least height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What surrounds the metrics of one evaluation or validation."""

    model: Autoencoder
    """On the device. In an evaluation it is in float32, and its precision changes after `Metric.prepare`."""
    device: torch.device
    prior: SavedPrior | None = None
    """Over the model's codes, where a command was given one."""
    latents: LatentSummary | None = None
    """What an evaluation gathers of the latents for its report; None in a validation."""
    codes: CodebookUsage | None = None
    """What an evaluation counts of a discrete model's codes; None in a validation."""


class Metric(ABC):
    """A score over a set of images.

    Evaluation calls `require`, `prepare` and `reset`, then `update` for each batch, then `compute`. Each of them may
    raise `CannotScoreError`.
    """

    name: str
    """The key in metrics.json, and the name by which commands and configurations choose the metric."""
    label: str = ""
    """What readers call it; empty stands for the name."""
    direction: Direction = ""
    unit: str = ""
    explanation: str = ""
    """One or two sentences for the report."""
    decimals: int = 3
    needs: Needs = Needs()
    pixels: PixelSpec | None = None
    """The images that it takes; None for any. It is skipped for a model of other images."""
    scores: ClassVar[Mapping[str, ScoreInfo]] = {}
    """Of a metric that computes several numbers: how each is explained, by its key."""
    optional: bool = False
    """Of the default set: that a model has no such score goes without saying."""
    compares_images: bool = True
    """Whether the bicubic thumbnail is scored beside the reconstruction, under `bicubic_KEY`."""

    def require(self, shape: tuple[int, ...]) -> None:
        """Raise `CannotScoreError` if the metric cannot take images (B, 3, H, W) of this shape."""
        height, width = shape[-2:]
        if min(height, width) < self.needs.side:
            side = self.needs.side
            raise CannotScoreError(
                f"{self.info().label} needs images of at least {side}x{side} pixels, got {height}x{width}"
            )

    def prepare(self, setting: Setting) -> None:  # noqa: B027 - a hook; most metrics need nothing
        """Take what the metric needs to know of the model, and move its networks to the device."""

    @abstractmethod
    def reset(self) -> None:
        """Forget every image."""

    @abstractmethod
    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch.

        Args:
            reconstructions: (B, 3, H, W) float32 in [-1, 1], clamped and rounded to the levels of 8-bit images.
            pixel_values: (B, 3, H, W) float32 in [-1, 1], rounded likewise.
            posterior: Of the batch; None for the thumbnail, which has none.

        Returns:
            Values of each image, (B,) by key; empty where an image has no value of its own.
        """

    @abstractmethod
    def compute(self) -> float | Scores:
        """Return the score over all images, or several by key. No keys mean that the model has no such score."""

    def for_baseline(self) -> Metric:
        """Return an empty metric that scores another reconstruction of the same images, updated after this one."""
        twin = copy.copy(self)
        twin.reset()
        return twin

    def protocol(self) -> dict[str, object]:
        """Return what the protocol must name beside the metric's own name, as JSON values by key."""
        return {}

    def info(self, key: str | None = None) -> ScoreInfo:
        """Return how a score is explained: the metric's own (the default), or that of another key that it computes."""
        own = ScoreInfo(
            label=self.label or self.name, direction=self.direction, unit=self.unit, explanation=self.explanation,
            decimals=self.decimals,
        )  # fmt: skip
        if key is None or key == self.name:
            return self.scores.get(self.name, own)
        return self.scores.get(key) or replace(own, label=f"{own.label}: {key}")


class MeanMetric(Metric):
    """A metric whose score is the mean of values that each image has; `update` returns `self.keep(values)`."""

    _values: dict[str, list[float]]

    def reset(self) -> None:
        """Forget every image."""
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
    """A metric that compares each reconstruction with its image; the score is the mean over the images."""

    @abstractmethod
    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the value of each image, (B,); the arguments are those of `Metric.update`."""

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; see `Metric.update`."""
        return self.keep({self.name: self.per_image(reconstructions, pixel_values)})
