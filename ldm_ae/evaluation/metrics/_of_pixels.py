"""The base of metrics that compare pixel values channel by channel, of images of any specification.

Of rgba images the colours are compared over a black, a white and a checkered background, so that hidden colour does not
count; source: Wang et al., AlphaVAE, arXiv 2507.09308, section 4, whose backgrounds are nine colours. Missing data is
left out of all means.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.interface import JSON, ImageMetric, ScoreInfo, Setting
from ldm_ae.images.missing import known, without_missing
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.stored import is_plain, score_levels
from ldm_ae.images.views import BACKGROUNDS, opaque
from ldm_ae.models import Posterior

WORST, ALPHA = "min", "alpha"
_WORDS: dict[str, str] = {WORST: "worst background", ALPHA: "alpha"}
_WORDS.update((name, f"over {name}") for name in BACKGROUNDS)


def _unchanged(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Measure:
    """The formula of a metric."""

    raw: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """Maps levels and reference levels, (B, C, H, W) float64 from 0 to 255, and where data is known, to (B, C)."""
    final: Callable[[Tensor], Tensor] = _unchanged
    """Maps means of `raw` to scores."""


@dataclass(frozen=True)
class PixelScores:
    """The scores of a batch."""

    whole: Tensor
    """(B,): over all channels; of rgba images, the mean over the backgrounds."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Of rgba images: (B,) over each background, their worst, and of alpha alone."""
    channels: Tensor | None = None
    """(B, C): of each channel, of images with names of channels."""


def measured(measure: Measure, reconstructions: Tensor, pixel_values: Tensor, pixels: PixelSpec) -> PixelScores:
    """Return the scores of images.

    Args:
        measure: The formula.
        reconstructions: (B, C, H, W), clamped to [-1, 1] here.
        pixel_values: (B, C, H, W) in [-1, 1].
        pixels: Their specification.
    """
    where = None if pixels.missing is None else known(pixel_values)
    pair = (reconstructions, pixel_values)
    if where is not None:
        missing = ~where
        pair = (reconstructions.masked_fill(missing, 0.0), without_missing(pixel_values))
    if pixels.meaning != "rgba":
        raw = _raw(measure, pair, pixels, where)
        return PixelScores(measure.final(raw.mean(dim=1)), channels=measure.final(raw))
    whole = None if where is None else where.all(dim=1, keepdim=True)
    parts: dict[str, Tensor] = {}
    for name in BACKGROUNDS:
        raw = _raw(measure, (opaque(pair[0], name), opaque(pair[1], name)), pixels, whole)
        parts[name] = measure.final(raw.mean(dim=1))
    of_backgrounds = torch.stack([*parts.values()])
    alpha = None if where is None else where[:, 3:]
    raw = _raw(measure, (pair[0][:, 3:], pair[1][:, 3:]), pixels, alpha)
    parts = {WORST: of_backgrounds.amin(dim=0), **parts, ALPHA: measure.final(raw.mean(dim=1))}
    return PixelScores(of_backgrounds.mean(dim=0), parts)


def _raw(measure: Measure, pair: tuple[Tensor, Tensor], pixels: PixelSpec, where: Tensor | None) -> Tensor:
    levels, reference = (score_levels(images, pixels) for images in pair)
    return measure.raw(levels, reference, where)


class PixelMetric(ImageMetric):
    """Base of metrics of pixel values, for which higher is better; `per_image` is for plain images.

    Of rgba images the score is the mean over black, white and checker; `NAME_min` is the worst of the three,
    `NAME_black` and its like are those over each, and `NAME_alpha` is that of alpha alone. Of images with named
    channels, details have the score of each channel.
    """

    images: PixelSpec = RGB
    """The images that are scored."""

    @property
    @abc.abstractmethod
    def measure(self) -> Measure:
        """The formula."""

    def prepare(self, setting: Setting) -> None:
        """Take the specification of the images."""
        self.images = setting.pixels

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._channels, self._count = torch.zeros(self.images.channels, dtype=torch.float64), 0

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; see `Metric.update`."""
        if is_plain(self.images):
            return super().update(reconstructions, pixel_values, posterior)
        found = measured(self.measure, reconstructions, pixel_values, self.images)
        if found.channels is not None:
            self._channels += found.channels.sum(dim=0).double().cpu()
            self._count += len(found.channels)
        parts = {f"{self.name}_{part}": value.float() for part, value in found.parts.items()}
        return self.keep({self.name: found.whole.float(), **parts})

    def details(self) -> Mapping[str, JSON]:
        """Return the mean score of each channel by its name, of images that have several beside colours."""
        if self._count == 0 or self.images.channels == 1:
            return {}
        means = (self._channels / self._count).tolist()
        return {"channels": {name: round(value, 6) for name, value in zip(self.images.names, means, strict=True)}}

    def info(self, key: str | None = None) -> ScoreInfo:
        """Return the explanation of the score, or of one of its parts."""
        part = "" if key is None else key.removeprefix(f"{self.name}_")
        if part in _WORDS:
            return replace(super().info(), label=f"{self.label}, {_WORDS[part]}")
        return super().info(key)
