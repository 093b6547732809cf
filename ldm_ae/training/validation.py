"""The metrics that a validation computes, and the metric by which the best checkpoint is chosen."""

from __future__ import annotations

from typing import NamedTuple

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metric_sets import validation_metrics
from ldm_ae.evaluation.metrics import METRICS
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Metric
from ldm_ae.evaluation.metrics.perceptual import Perceptual, PerceptualDistance
from ldm_ae.evaluation.scoring import metric_view
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views import View
from ldm_ae.images.views.choice import SETTING as VIEW_SETTING

SETTING = "training.best_metric"


class Validation(NamedTuple):
    """The metrics of a run's validations."""

    metrics: list[Metric]
    best: Metric
    """The metric among them by which checkpoints are compared."""
    added: bool
    """Whether `best` is additional to the metrics that every validation has."""

    def rank(self, scores: dict[str, float]) -> float:
        """Return the score of `best` with the sign that makes higher better.

        Raises:
            UserError: The metric gave no score under its own name.
        """
        if self.best.name not in scores:
            raise UserError(
                f"{SETTING} is '{self.best.name}', which has no value for this model; choose another metric"
            )
        score = scores[self.best.name]
        return score if self.best.direction == "higher" else -score


def choose_metrics(best_metric: str, perceptual: PerceptualDistance | None) -> Validation:
    """Return PSNR, SSIM, the objective's perceptual distance, and the metric that `training.best_metric` adds.

    Args:
        best_metric: A registered metric's name; `perceptual` stands for the objective's network.
        perceptual: That network.

    Raises:
        UserError: An unknown name, or a metric without a better direction.
    """
    metrics: list[Metric] = [*validation_metrics(perceptual)]
    if best_metric == Perceptual.name:
        if perceptual is None:
            raise UserError(f"{SETTING} is 'perceptual', but objective.perceptual is not set")
        best_metric = perceptual.name
    for metric in metrics:
        if metric.name == best_metric:
            return Validation(metrics, metric, added=False)
    if best_metric not in METRICS:
        ranked = sorted(name for name, cls in METRICS.items() if cls.direction)
        raise UserError(f"{SETTING}: no metric is named '{best_metric}'; expected one of {', '.join(ranked)}")
    if not METRICS[best_metric].direction:
        raise UserError(f"{SETTING} is '{best_metric}', for which neither higher nor lower is better; choose another")
    best = METRICS[best_metric]()
    return Validation([*metrics, best], best, added=True)


def check_best(
    validation: Validation, *, resolution: int, images: int, pixels: PixelSpec = RGB, view: View | None = None
) -> None:
    """Raise `UserError` if the held-out images do not allow the metric that `training.best_metric` adds. `check_sizes`
    tries the other metrics. `view` is `objective.view`."""
    best = validation.best
    if not validation.added:
        return
    try:
        metric_view(best, pixels, view, setting=VIEW_SETTING)
    except CannotScoreError as error:
        raise UserError(f"{SETTING} is '{best.name}': {error}") from error
    try:
        best.require((1, 3, resolution, resolution))
    except CannotScoreError as error:
        raise UserError(f"{SETTING} is '{best.name}': {error}. Raise data.resolution, or choose another") from error
    if images < best.needs.images:
        raise UserError(
            f"{SETTING} is '{best.name}', which needs at least {best.needs.images} images; data.validation_images is "
            f"{images}"
        )
