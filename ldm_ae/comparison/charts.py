"""The charts of a comparison, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm_ae.comparison.codecs import codec_colours
from ldm_ae.comparison.main_scores import main_scores
from ldm_ae.comparison.result import ModelResult
from ldm_ae.evaluation.baselines import matched_rate
from ldm_ae.evaluation.report.plots import Chart, Series

if TYPE_CHECKING:
    from ldm_ae.comparison.comparison import Comparison

_CURVES = 6
"""Number of scores whose training curves are drawn."""


def rate_distortion(comparison: Comparison) -> list[Chart]:
    """Return a chart for each main score that compares reconstructions with the images, which are those that the
    thumbnail has too: a point for each model at its rate, a line for each codec."""
    models = comparison.models
    rated = [(number, model, rate.bits_per_pixel) for number, model in enumerate(models)
             if (rate := matched_rate(model.scores)) is not None]  # fmt: skip
    if not rated:
        return []
    charts = []
    for key, info in main_scores(models).items():
        if info.group != "reconstruction" or not any(key in model.baseline for model in models):
            continue
        series = [
            Series(name=model.name, x=[rate], y=[model.scores[key]], colour=number, line=False, marks=True,
                   labels=[f"{model.name}: {info.text(model.scores[key])} at {rate:.3g} bits per pixel"])
            for number, model, rate in rated if key in model.scores
        ]  # fmt: skip
        for name, number in codec_colours(comparison.codecs.results, len(models)).items():
            points = sorted(
                {
                    (r.bits_per_pixel, r.scores[key])
                    for r in comparison.codecs.results
                    if r.title == name and key in r.scores
                }
            )
            series.append(
                Series(name=name, x=[x for x, _ in points], y=[y for _, y in points], colour=number, marks=True)
            )
        charts.append(
            Chart(name=f"rate_{key}", title=f"{info.label} {info.arrow}".rstrip(), x_label="bits per pixel",
                  y_label=info.title, series=series, x_log=True)
        )  # fmt: skip
    return [chart for chart in charts if not chart.empty]


def flow_losses(models: Sequence[ModelResult]) -> Chart:
    """Return the small diffusion network's loss on held-out images over the noise level."""
    series = [
        Series(
            name=model.name, x=list(model.flow_losses), y=list(model.flow_losses.values()), colour=number, marks=True
        )
        for number, model in enumerate(models)
        if model.flow_losses
    ]
    return Chart(name="flow_loss", title="Loss of the diffusion network ↓", x_label="noise level, 1 is noise alone",
                 y_label="flow loss", series=series)  # fmt: skip


def training_curves(models: Sequence[ModelResult]) -> list[Chart]:
    """Return a chart for each validation score of the training runs among the models."""
    keys = dict.fromkeys(key for model in models for key in model.curves)
    charts = []
    for key in list(keys)[:_CURVES]:
        info = next((model.infos[key] for model in models if key in model.infos), None)
        series = [
            Series(name=model.name, x=model.curves[key].steps, y=model.curves[key].values, colour=number,
                   marks=len(model.curves[key].steps) < 30)
            for number, model in enumerate(models) if key in model.curves
        ]  # fmt: skip
        title = key if info is None else f"{info.label} {info.arrow}".rstrip()
        charts.append(
            Chart(name=f"training_{key}", title=title, x_label="step", y_label=key if info is None else info.title,
                  series=series)
        )  # fmt: skip
    return [chart for chart in charts if not chart.empty]
