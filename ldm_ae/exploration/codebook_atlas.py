"""The codebook: how often codes are used, what each decodes to alone, and where images use it."""

from __future__ import annotations

from html import escape
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.evaluation.metrics.codebook import CodebookSummary, CodebookUsage
from ldm_ae.evaluation.report.pictures import code_picture
from ldm_ae.evaluation.report.plots import Chart, Series, legend, svg
from ldm_ae.evaluation.report.viewer import view, views
from ldm_ae.exploration.decoding import decode_levels
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.settings import Fact, Section, Settings, absent
from ldm_ae.images.in_memory import levels_image
from ldm_ae.models import Autoencoder

CODES = 24
"""Codes that are drawn: the most frequent ones."""
PATCHES = 4
"""Places where an image uses the code."""
CELL = 48
"""Side of a patch on the page in pixels."""
CHART_POINTS = 400
_PLACE, _TITLE = "codebook", "Codebook atlas"


def codebook_atlas(model: Autoencoder, images: Encoded, settings: Settings) -> Section:
    """Return the usage of the codes and the most used ones."""
    if images.indices is None:
        return absent(_PLACE, _TITLE, "This model has no codebook: its latents are continuous.")
    size = model.latent_spec.codebook_size
    assert size is not None, "a model with indices has a codebook"
    usage = CodebookUsage(size)
    usage.update(images.indices, images.levels[0, 0].numel())
    summary = usage.summary()
    if summary is None:
        return absent(_PLACE, _TITLE, f"This codebook has {size:,} codes, of which images use a tiny fraction.")
    counts = summary.counts[0]
    chosen = counts.argsort(descending=True, stable=True)[:CODES]
    chosen = chosen[counts[chosen] > 0]
    decoded = decode_levels(model, _alone(model, images, summary, chosen), settings, what="a code alone")
    cells = []
    for code, levels in zip(chosen.tolist(), decoded, strict=True):
        fraction = int(counts[code]) / summary.counted
        cells.append(view(f"code {code}", levels_image(_picture(images, code, levels)),
                          caption=f"<b>{code}</b> {fraction:.2%}"))  # fmt: skip
    used = int(summary.used[0])
    values: dict[str, Any] = summary.describe() | {
        "codes": [{"code": code, "count": int(counts[code])} for code in chosen.tolist()]
    }
    level = f" Of the {summary.levels} levels this is the first; the others hold their most frequent code." * (
        summary.levels > 1
    )
    line = escape(summary.line())
    chart = _chart(summary)
    names = [(series.name, series.colour) for series in chart.series]
    levels_legend = legend(names) if summary.levels > 1 else ""
    overview = view("codes", code_picture(counts), pixels=True, caption="each pixel is a code")
    content = (
        f"<p>{line[0].upper() + line[1:]}. A code that is never used is wasted; a few codes that are used everywhere "
        f"carry little.{level}</p>"
        f'{levels_legend}<div class="usage">{svg(chart)}<figure>{views("All codes", [overview])}<figcaption>In rows by '
        "their number: dark ones never occur, lighter ones more often.</figcaption></figure></div>"
        "<h3>The most used codes</h3><p>On the left, an image of this code at every place, decoded; beside it places "
        "where the images use the code, with their surroundings. What the patches have in common is what the "
        "code means. Its own image may differ from them, as the decoder never saw one code everywhere.</p>"
        f"<figure>{views('The most used codes', cells, css='codes')}</figure>"
    )
    fact = Fact("Codes in use", f"{used:,} of {size:,}", f"{float(summary.entropies[0]):.2f} bits per code")
    return Section(place=_PLACE, title=_TITLE, content=content, values=values, facts=[fact])


def _alone(model: Autoencoder, images: Encoded, summary: CodebookSummary, codes: Tensor) -> Tensor:
    """Return latents (N, C, h, w) of images that have one of N codes at every place of the first level."""
    assert images.indices is not None
    assert model.codebook is not None
    shape = images.indices.shape[1:]
    indices = codes.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()
    if summary.levels > 1:
        for level in range(1, summary.levels):
            indices[:, level] = int(summary.counts[level].argmax())
    return model.codebook.latents(indices.to(model.device))


def _picture(images: Encoded, code: int, alone: Tensor) -> Tensor:
    """Return the code's image and patches where it is used, side by side, as one image (3, CELL, W) uint8."""
    shown = [_resized(_centre(alone, images)), *(_resized(patch) for patch in patches(images, code))]
    blank = torch.full((3, CELL, CELL), 128, dtype=torch.uint8)
    shown += [blank] * (PATCHES + 1 - len(shown))
    line = torch.full((3, CELL, 2), 255, dtype=torch.uint8)
    return torch.cat([part for image in shown for part in (image, line)][:-1], dim=2)


def patches(images: Encoded, code: int) -> list[Tensor]:
    """Return the surroundings of places where images use a code, of different images first: (3, s, s) uint8 each, three
    latent places wide where the image has them."""
    assert images.indices is not None
    indices = images.indices[images.rows]
    indices = indices if indices.ndim == 3 else indices[:, 0]
    height, width = indices.shape[1:]
    stride = images.levels.shape[-1] // width
    side = stride * min(3, height, width)
    found: list[Tensor] = []
    places = (indices == code).nonzero().tolist()
    first = {place[0]: place for place in reversed(places)}  # of each image the first place
    others = [place for place in places if place is not first[place[0]]]
    for image, row, column in [*reversed(first.values()), *others][:PATCHES]:
        top = min(max((row - 1) * stride, 0), images.levels.shape[-2] - side)
        left = min(max((column - 1) * stride, 0), images.levels.shape[-1] - side)
        found.append(images.levels[image, :, top : top + side, left : left + side])
    return found


def _centre(levels: Tensor, images: Encoded) -> Tensor:
    """Return the middle of a code's image, away from the borders, of the size of a patch."""
    assert images.indices is not None
    stride = levels.shape[-1] // images.indices.shape[-1]
    side = stride * min(3, *images.indices.shape[-2:])
    top, left = (levels.shape[-2] - side) // 2, (levels.shape[-1] - side) // 2
    return levels[:, top : top + side, left : left + side]


def _resized(levels: Tensor) -> Tensor:
    return F.interpolate(levels[None].float(), size=(CELL, CELL), mode="nearest")[0].to(torch.uint8)


def _chart(summary: CodebookSummary) -> Chart:
    """Return the frequency of codes by their rank, a line for each level."""
    series = []
    for level, counts in enumerate(summary.counts):
        ordered = counts.sort(descending=True).values
        ordered = ordered[ordered > 0]
        ranks = torch.linspace(0, len(ordered) - 1, min(len(ordered), CHART_POINTS)).round().long().unique()
        frequencies = ordered[ranks].double() / summary.counted
        name = "codes" if summary.levels == 1 else f"level {level}"
        series.append(Series(name=name, x=(ranks + 1).tolist(), y=frequencies.tolist(), colour=level))
    return Chart(
        name="usage", title="How often codes are used", x_label="rank of the code", y_label="fraction of places",
        series=series, y_log=True,
    )  # fmt: skip
