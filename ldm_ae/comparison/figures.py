"""The charts and reconstructions of a comparison as files for papers, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldm_ae.comparison.charts import flow_losses, rate_distortion, training_curves
from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.report.details_page import correlation, spectra
from ldm_ae.evaluation.report.pictures import image_grid
from ldm_ae.evaluation.report.plots import COLOURS, LIGHT, Chart
from ldm_ae.io.files import writing

if TYPE_CHECKING:
    from ldm_ae.comparison.comparison import Comparison

FigureKind = Literal["pdf", "png"]
FIGURE_KINDS: tuple[FigureKind, ...] = ("pdf", "png")
_MARKS = ("o", "s", "D", "^")
_LINES = ("-", "--", ":", "-.")
_INCHES = (4.2, 2.9)
_DPI = 200


def require_matplotlib() -> None:
    """Raise `UserError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("figures need matplotlib, which is not installed; run pip install 'ldm_ae[plots]'") from None


def write_figures(comparison: Comparison, folder: Path, kind: FigureKind) -> list[Path]:
    """Write a file for each chart that has points, for the reconstructions, the samples and the correlation matrices.

    Args:
        comparison: The comparison.
        folder: The folder, which is created if necessary.
        kind: Format of the files.

    Returns:
        Paths of the files.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    models = comparison.models
    spectrum = spectra([(model.name, model.details) for model in models])
    charts = [*rate_distortion(comparison), spectrum, flow_losses(models), *training_curves(models)]
    drawn: list[tuple[str, Any]] = [
        (chart.name, _draw(chart, Figure(figsize=_INCHES, layout="constrained"))) for chart in charts if not chart.empty
    ]
    drawn.append(("reconstructions", _reconstructions(comparison, Figure)))
    grids = [(model.name, image_grid(model.samples)) for model in models if model.samples is not None]
    if grids:
        drawn.append(("samples", _side_by_side(grids, Figure)))
    matrices = [(model.name, matrix) for model in models if (matrix := correlation(model.details)) is not None]
    if matrices:
        drawn.append(("correlation", _matrices(matrices, Figure)))
    paths = []
    for name, figure in drawn:
        path = folder / f"{name}.{kind}"
        with writing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=_DPI)
        paths.append(path)
    return paths


def _draw(chart: Chart, figure: Any) -> Any:
    axes = figure.subplots()
    for series in chart.series:
        points = chart.points(series)
        if not points:
            continue
        number = series.colour
        axes.plot(
            [x for x, _, _ in points], [y for _, y, _ in points], label=series.name, color=LIGHT[number % COLOURS],
            linestyle=_LINES[number // COLOURS % len(_LINES)] if series.line else "none",
            marker=_MARKS[number % len(_MARKS)] if series.marks else None, markersize=5,
        )  # fmt: skip
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    axes.set_xlabel(_plain(chart.x_label))
    axes.set_ylabel(_plain(chart.y_label))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def _reconstructions(comparison: Comparison, make: Any) -> Any:
    """Return a row for each image and a column for the original and each model."""
    columns = [("original", comparison.originals), *((model.name, model.pictures) for model in comparison.models)]
    rows = len(comparison.originals)
    figure = make(figsize=(1.5 * len(columns), 1.5 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, pictures) in enumerate(columns):
        axes[0][column].set_title(_plain(name), fontsize="small")
        for row in range(rows):
            axes[row][column].axis("off")
            if row < len(pictures):
                axes[row][column].imshow(pictures[row].image.permute(1, 2, 0).numpy(), interpolation="nearest")
    return figure


def _side_by_side(images: list[tuple[str, Any]], make: Any) -> Any:
    figure = make(figsize=(3.0 * len(images), 3.2), layout="constrained")
    for axis, (name, image) in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        axis.set_title(_plain(name), fontsize="small")
        axis.axis("off")
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    return figure


def _matrices(matrices: list[tuple[str, Any]], make: Any) -> Any:
    figure = make(figsize=(2.4 * len(matrices) + 0.6, 2.5), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (name, matrix) in zip(axes, matrices, strict=True):
        axis.set_title(_plain(name), fontsize="small")
        shown = axis.imshow(matrix.numpy(), vmin=-1.0, vmax=1.0, cmap="RdBu_r", interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.8)
    return figure


def _plain(text: str) -> str:
    """Return text in which matplotlib finds no formulas."""
    return text.replace("$", r"\$")
