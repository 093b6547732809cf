"""The images of the page: reconstructions side by side, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ldm_ae.comparison.codecs import codec_colours
from ldm_ae.comparison.main_scores import main_scores
from ldm_ae.comparison.result import ModelResult, Shown
from ldm_ae.evaluation.report.pictures import image_grid
from ldm_ae.evaluation.report.plots import swatch
from ldm_ae.evaluation.report.viewer import view, views
from ldm_ae.images.in_memory import levels_image

if TYPE_CHECKING:
    from ldm_ae.comparison.comparison import Comparison

SAMPLES = 16
"""Samples of each model on the page."""
_CAPTIONED = 2
"""Scores under a reconstruction."""


def gallery(comparison: Comparison) -> str:
    """Return the first images, each with every model's reconstruction of it, and the codecs'."""
    keys = list(main_scores(comparison.models))
    colours = codec_colours(comparison.codecs.results, len(comparison.models))
    figures = []
    for number, original in enumerate(comparison.originals):
        shown: list[tuple[str, str, Shown]] = [
            (model.name, swatch(place), model.pictures[number])
            for place, model in enumerate(comparison.models)
            if number < len(model.pictures)
        ]
        best = _best(comparison, [picture for _, _, picture in shown], keys)
        cells = [view("original", levels_image(original.image))]
        cells += [
            view(name, levels_image(picture.image), caption=_caption(comparison, name, mark, picture, keys, best))
            for name, mark, picture in shown
        ]
        for codec in comparison.codecs.results:
            if number < len(codec.pictures):
                picture, mark = codec.pictures[number], swatch(colours[codec.title])
                caption = _caption(comparison, codec.name, mark, picture, keys, {})
                cells.append(view(codec.name, levels_image(picture.image), caption=caption))
        caption = f"<figcaption><b>{escape(original.key)}</b></figcaption>"
        figures.append(f"<figure>{views(original.key, cells, css='tiles')}{caption}</figure>")
    return "".join(figures)


def _best(comparison: Comparison, pictures: Sequence[Shown], keys: Sequence[str]) -> dict[str, float]:
    """Return the best value among the reconstructions of one image, by the key of the score."""
    found = {}
    for key in keys:
        values = [picture.scores[key] for picture in pictures if key in picture.scores]
        direction = comparison.infos[key].direction
        if direction and len(set(values)) > 1:
            found[key] = max(values) if direction == "higher" else min(values)
    return found


def _caption(
    comparison: Comparison, name: str, mark: str, picture: Shown, keys: Sequence[str], best: dict[str, float]
) -> str:
    """Return the name of a reconstruction's model or codec and the main scores of this image, the best in bold."""
    parts = []
    for key in [key for key in keys if key in picture.scores and comparison.infos[key].direction][:_CAPTIONED]:
        info, value = comparison.infos[key], picture.scores[key]
        text = escape(f"{info.label} {info.text(value)}")
        parts.append(f"<b>{text}</b>" if best.get(key) == value else text)
    return f"{mark}{escape(name)}<br>{' · '.join(parts)}" if parts else f"{mark}{escape(name)}"


def sample_grids(models: Sequence[ModelResult]) -> str:
    """Return a grid of samples for each model that has some."""
    cells = [
        view(model.name, levels_image(image_grid(model.samples[:SAMPLES])), caption=swatch(place) + escape(model.name))
        for place, model in enumerate(models)
        if model.samples is not None
    ]
    if not cells:
        return ""
    note = "<p>Place by place from the same noise, where latents have the same shape.</p>"
    return f"<h3>Samples</h3>{note}<figure>{views('Samples', cells, css='samples')}</figure>"
