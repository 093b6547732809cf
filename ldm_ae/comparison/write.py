"""A comparison as files: the page for people, `metrics.json` for programs, tables and figures for papers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm_ae.comparison.comparison import Comparison
from ldm_ae.comparison.figures import FigureKind, write_figures
from ldm_ae.comparison.folder import FIGURES, LATEX, MARKDOWN, METRICS, PAGE
from ldm_ae.comparison.page import render
from ldm_ae.comparison.tables import latex_table, markdown_table
from ldm_ae.core.errors import UserError
from ldm_ae.io.files import make_folder, write_json, writing


def write_comparison(comparison: Comparison, folder: str | Path, *, figures: FigureKind | None = None) -> Path:
    """Write compare.html, metrics.json, table.md and table.tex into `folder`, and return the page's path.

    Args:
        comparison: The comparison.
        folder: The folder, which is created if necessary.
        figures: Kind of the files of figures/, which need matplotlib; None writes none.

    Raises:
        UserError: The folder cannot be written to, or matplotlib is not installed.
    """
    folder = make_folder(folder)
    if figures is not None:
        write_figures(comparison, folder / FIGURES, figures)
    texts = {
        MARKDOWN: markdown_table(comparison.models),
        LATEX: latex_table(comparison.models),
        PAGE: render(comparison),
    }
    try:
        write_json(folder / METRICS, metrics(comparison))
        for name, text in texts.items():
            with writing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the comparison to {folder}: {error.strerror}") from error
    return folder / PAGE


def metrics(comparison: Comparison) -> dict[str, Any]:
    """Return the content of `metrics.json`: the protocol, the explanations of all scores, and each model's results."""
    models = {
        model.name: {
            "model": model.model,
            "scores": model.scores,
            "baseline": model.baseline,
            "details": model.details,
            "flow_losses": {f"{level:g}": loss for level, loss in model.flow_losses.items()},
            "curves": {key: asdict(curve) for key, curve in model.curves.items()},
            "skipped": model.skipped,
            "warnings": [asdict(warning) for warning in model.warnings],
            "protocol": model.protocol,
            "folder": model.folder,
        }
        for model in comparison.models
    }
    codecs = [
        {
            "name": codec.name, "codec": codec.codec, "quality": codec.quality, "models": codec.models,
            "bits_per_pixel": codec.bits_per_pixel, "scores": codec.scores, "note": codec.note,
        }
        for codec in comparison.codecs.results
    ]  # fmt: skip
    return {
        "protocol": comparison.protocol,
        "score_infos": {key: asdict(info) for key, info in comparison.infos.items()},
        "best": {key: comparison.best(key) for key in comparison.infos if comparison.best(key)},
        "models": models,
        "failed": comparison.failed,
        "codecs": codecs,
        "skipped_codecs": comparison.codecs.skipped,
    }
