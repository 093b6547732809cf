"""Computation of a list of metrics over batches of images, which evaluation and validation share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, Metric, ScoreInfo, Scores, Setting
from ldm_ae.images.missing import fill
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.stored import stored_pair
from ldm_ae.images.views import View, sees, view_for
from ldm_ae.models import Posterior

BASELINE_PREFIX = "bicubic_"
"""Prefix of the keys of the thumbnail's scores."""


def own_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores by key without the thumbnail's."""
    return {key: value for key, value in scores.items() if not key.startswith(BASELINE_PREFIX)}


VIEW_OPTION = "--view"
"""The option that chooses the view, for messages."""


class _Running(NamedTuple):
    """A metric that is not skipped."""

    metric: Metric
    twin: Metric | None
    """The metric of the thumbnail."""
    view: View | None
    """The view of the images that it scores; None where it scores them as they are."""


class Scoring:
    """Runner of metrics. A metric that cannot score these images is skipped, with its reason; the others continue.

    Args:
        metrics: Metrics in the order of their scores.
        setting: The argument of `Metric.prepare`.
        strict: For metrics whose sizes are already checked: raise a `CannotScoreError` instead of skipping the metric.
    """

    def __init__(self, metrics: Sequence[Metric], setting: Setting, *, strict: bool = False):
        self.skipped: dict[str, str] = {}
        """Reasons why metrics, or what they stand in for, have no score, by name."""
        self.infos: dict[str, ScoreInfo] = {}
        """Display and explanation of each score, by its key; the thumbnail's scores share those of the model's."""
        self.details: dict[str, dict[str, JSON]] = {}
        """Results of `compute` that are not single numbers, by the metric's name; without those that have none."""
        self.ranking: str | None = None
        """Key of the first score with a direction and a value for each image; it ranks the images."""
        self._strict = strict
        self._running: list[_Running] = []
        self._pixels = setting.pixels
        self._keys: dict[str, list[str]] = {}  # keys of each image's values, by the metric's name
        self._shapes: set[tuple[int, ...]] = set()
        self._thumbnails = False  # whether there were any
        for metric in metrics:
            self.skipped |= metric.absent
            try:
                view = metric_view(metric, setting.pixels, setting.view)
                metric.prepare(setting)
            except CannotScoreError as error:
                self._skip(metric, error)
                continue
            metric.reset()
            self._running.append(_Running(metric, metric.for_baseline() if metric.compares_images else None, view))

    @property
    def running(self) -> list[Metric]:
        """The metrics that are not skipped."""
        return [running.metric for running in self._running]

    @property
    def view(self) -> View | None:
        """The view that metrics of RGB images score; None where none does."""
        return next((running.view for running in self._running if running.view is not None), None)

    def require(self, shape: tuple[int, ...]) -> None:
        """Skip the metrics that do not support images (B, C, H, W) of this shape; each shape is tried once."""
        if self._strict or tuple(shape[1:]) in self._shapes:
            return
        self._shapes.add(tuple(shape[1:]))
        for metric, _, view in list(self._running):
            try:
                metric.require(tuple(shape) if view is None else (shape[0], RGB.channels, *shape[2:]))
            except CannotScoreError as error:
                self._skip(metric, error)

    def update(
        self,
        reconstructions: Tensor,
        pixel_values: Tensor,
        posterior: Posterior | None = None,
        thumbnails: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, list[float]]:
        """Add a batch of images (B, C, H, W) in about [-1, 1], with labels (B,) int64 where there are some, and return
        the values of each image by key."""
        self.require(pixel_values.shape)
        pair = stored_pair(reconstructions, pixel_values, self._pixels)
        small = None if thumbnails is None else stored_pair(thumbnails, pixel_values, self._pixels)
        self._thumbnails |= small is not None
        seen: dict[int, _Pair] = {}  # the views of both pairs, which metrics share
        own: dict[str, Tensor] = {}
        baseline: dict[str, Tensor] = {}
        for metric, twin, view in list(self._running):
            try:
                metric.take_labels(labels)
                values = _update(metric, pair, view, seen, self._pixels, posterior)
                others = {} if twin is None or small is None else _update(twin, small, view, seen, self._pixels)
            except CannotScoreError as error:
                self._skip(metric, error)
                continue
            self._note(metric, values)
            own |= values
            baseline |= {BASELINE_PREFIX + key: value for key, value in others.items()}
        return {key: value.tolist() for key, value in (own | baseline).items()}

    def compute(self, progress: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """Return all scores: first those with values for each image, in the order of the metrics, then the others. A
        metric without a score for this model, or whose score is not finite, counts as skipped, the former unless it is
        optional. A strict runner returns scores that are not finite. `progress`
        is called before each score with the number of scores done, and their total."""
        own: dict[str, float] = {}
        baseline: dict[str, float] = {}
        others: dict[str, float] = {}
        running = list(self._running)
        for number, (metric, twin, _) in enumerate(running):
            if progress is not None:
                progress(number, len(running))
            try:
                found = _by_key(metric, metric.compute())
                of_twin = {} if twin is None or not self._thumbnails else _by_key(metric, twin.compute())
                if not self._strict:
                    _require_finite(metric, found)
            except CannotScoreError as error:
                self._skip(metric, error)
                continue
            if not found and not metric.optional:
                self.skipped[metric.name] = f"{metric.info().label} has no value for this model"
            self.infos |= {key: metric.info(key) for key in found}
            if details := dict(metric.details()):
                self.details[metric.name] = details
            of_twin = {BASELINE_PREFIX + key: value for key, value in of_twin.items()}
            if self._keys.get(metric.name):
                own |= found
                baseline |= of_twin
            else:
                others |= found | of_twin
        return own | baseline | others

    def protocol(self) -> dict[str, object]:
        """Return the running metrics' protocol entries; of two of a kind, the second one's has its metric's name."""
        found: dict[str, object] = {"frechet_features": None}
        for metric in self.running:
            for name, value in metric.protocol().items():
                found[name if found.get(name) is None else f"{name}_{metric.name}"] = value
        return found

    def keys_of_images(self) -> set[str]:
        """Keys of the per-image values whose metric is not skipped, including the thumbnail's."""
        return {prefix + key for keys in self._keys.values() for key in keys for prefix in ("", BASELINE_PREFIX)}

    def rank(self, values: Mapping[str, list[float]]) -> list[float] | None:
        """Return the ranking score of each image with the sign that makes higher better; None if there is none."""
        if self.ranking is None:
            return None
        sign = 1.0 if self.infos[self.ranking].direction == "higher" else -1.0
        return [sign * value for value in values[self.ranking]]

    def _note(self, metric: Metric, values: Mapping[str, Tensor]) -> None:
        keys = self._keys.setdefault(metric.name, [])
        for key in values:
            if key not in keys:
                keys.append(key)
                self.infos[key] = metric.info(key)
            if self.ranking is None and metric.info(key).direction:
                self.ranking = key

    def _skip(self, metric: Metric, error: CannotScoreError) -> None:
        if self._strict:
            raise error
        self.skipped[metric.name] = str(error)
        self._running = [running for running in self._running if running.metric is not metric]
        if self.ranking in self._keys.pop(metric.name, []):
            self.ranking = None


_Pair = tuple[Tensor, Tensor]


def metric_view(metric: Metric, pixels: PixelSpec, view: View | None, *, setting: str = VIEW_OPTION) -> View | None:
    """Return the view by which a metric scores images; None where it scores them as they are.

    Args:
        metric: The metric.
        pixels: Specification of the images.
        view: The chosen view; None takes the default of the images.
        setting: Name of the setting that chooses it, for the message.

    Raises:
        CannotScoreError: The metric does not support these images, and there is no view of them.
    """
    needed = metric.pixels
    if needed is None or sees(needed, pixels):
        return None
    label = metric.info().label
    if needed != RGB or not metric.compares_images:
        raise CannotScoreError(f"{label} requires images that are {needed}, but the model uses {pixels}")
    try:
        return view_for(needed, pixels, view, label, setting=setting)
    except UserError as error:
        raise CannotScoreError(str(error)) from None


def _update(
    metric: Metric, pair: _Pair, view: View | None, seen: dict[int, _Pair], pixels: PixelSpec,
    posterior: Posterior | None = None,
) -> Mapping[str, Tensor]:  # fmt: skip
    """Add reconstructions and images to a metric, and return the value of each image by key."""
    if view is None:
        return metric.update(*pair, posterior)
    if id(pair) not in seen:
        reconstructions, pixel_values = pair if pixels.missing is None else fill(*pair)
        seen[id(pair)] = (view(reconstructions)[0], view(pixel_values)[0])
    values = metric.update(*seen[id(pair)], posterior)
    return {key: value.view(len(pair[0]), -1).mean(dim=1) for key, value in values.items()}


def _by_key(metric: Metric, found: float | Scores) -> dict[str, float]:
    return dict(found) if isinstance(found, Mapping) else {metric.name: found}


def _require_finite(metric: Metric, scores: Scores) -> None:
    bad = [key for key, value in scores.items() if not math.isfinite(value)]
    if bad:
        raise CannotScoreError(
            f"{', '.join(bad)} is not finite for this model and these images ({metric.info().label})"
        )
