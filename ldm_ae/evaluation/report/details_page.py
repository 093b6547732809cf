"""Results that are not single numbers, of one model or of several side by side: the parts that the report of an
evaluation and the page of a comparison share. They need the style of charts, `PLOT_STYLE`, and `DETAILS_STYLE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.channel_correlation import ChannelCorrelation
from ldm_ae.evaluation.metrics.interface import JSON
from ldm_ae.evaluation.metrics.spectrum import LatentSpectrum
from ldm_ae.evaluation.metrics.text import TextError
from ldm_ae.evaluation.report.page import number, table
from ldm_ae.evaluation.report.pictures import matrix_picture
from ldm_ae.evaluation.report.plots import Chart, Series, swatch
from ldm_ae.evaluation.report.viewer import view, views

DETAILS_STYLE = Path(__file__).with_name("details.css").read_text(encoding="utf-8").replace("\n", "")
TEXT_LINES = 2
"""Lines of text of each size."""

Details = Mapping[str, Mapping[str, JSON]]
"""Results by the metric's name, as `Evaluation.details` has them."""
Models = Sequence[tuple[str, Details]]
"""The name and the details of each model; its place is the number of its colour."""

_DRAWN = (LatentSpectrum.name, ChannelCorrelation.name, TextError.name)
_FEW = 8


def spectra(models: Models) -> Chart:
    """Return the radially averaged power of the latents over frequency."""
    series = []
    for place, (name, details) in enumerate(models):
        found: Any = details.get(LatentSpectrum.name, {})
        if "power" in found:
            series.append(Series(name=name, x=found["cycles_per_latent"], y=found["power"], colour=place))
    return Chart(name="spectra", title="Spectrum of the latents", x_label="cycles per latent",
                 y_label="power, white noise is 1", series=series, x_log=True, y_log=True)  # fmt: skip


def correlation(details: Details) -> Tensor | None:
    """Return the correlations between latent channels, (C, C) float32; None without such a result."""
    found: Any = details.get(ChannelCorrelation.name, {})
    matrix = found.get("correlations")
    return None if matrix is None else torch.tensor(matrix, dtype=torch.float32)


def correlation_matrices(models: Models) -> str:
    """Return the matrix of correlation between latent channels for each model that has one."""
    cells = []
    for place, (name, details) in enumerate(models):
        matrix = correlation(details)
        if matrix is not None:
            label = f"{name}, {len(matrix)} channels"
            caption = _mark(models, place) + escape(label)
            cells.append(view(label, matrix_picture(matrix), caption=caption, pixels=True))
    if not cells:
        return ""
    note = "<p>A row and a column for each channel; white is no correlation, red +1 and blue −1.</p>"
    title = "Correlation between channels"
    return f"<h3>{title}</h3>{note}<figure>{views(title, cells, css='matrices')}</figure>"


def text_tables(models: Models) -> str:
    """Return the first lines of text of each size, as they were written and as they were read from the reconstructions
    of each model, the misread letters marked."""
    found: list[tuple[int, str, Any]] = [
        (place, name, details[TextError.name]) for place, (name, details) in enumerate(models)
        if details.get(TextError.name)
    ]  # fmt: skip
    if not found:
        return ""
    rows = []
    for size, first in found[0][2].items():
        written = first["written"][:TEXT_LINES]
        rows.append((f"{escape(size)} px", "written", _lines(written, written)))
        for place, name, details in found:
            own = details.get(size)
            if own is not None:
                text = _lines(own["read"][:TEXT_LINES], own["written"][:TEXT_LINES])
                rows.append(("", _mark(models, place) + escape(name), text))
    note = (
        "<p>Rendered text, read from the reconstructions letter by letter; wrong letters are red and underlined. A "
        "question mark is a place of one colour.</p>"
    )
    return f"<h3>Text</h3>{note}" + table(("Size", "Read from", "Text"), rows, numbers=(), css="read narrow")


def other_details(models: Models) -> str:
    """Return the results of all other metrics that are numbers, words or short lists of these, in a table."""
    rows: list[tuple[str, str, str]] = []
    for place, (name, details) in enumerate(models):
        for metric, found in details.items():
            if metric in _DRAWN:
                continue
            label = _mark(models, place) + escape(name)
            rows += [
                (label, escape(f"{metric}: {key}".replace("_", " ")), text)
                for key, value in found.items() if (text := _short(value)) is not None
            ]  # fmt: skip
    if not rows:
        return ""
    several = len(models) > 1
    header = ("Model", "Result", "Value")
    return "<h3>Other results</h3>" + table(
        header if several else header[1:], [row if several else row[1:] for row in rows], numbers=(), css="narrow"
    )


def _mark(models: Models, place: int) -> str:
    return swatch(place) if len(models) > 1 else ""


def _lines(read: Sequence[str], written: Sequence[str]) -> str:
    return "<br>".join(f"<code>{_line(own, right)}</code>" for own, right in zip(read, written, strict=True))


def _line(read: str, written: str) -> str:
    """Return a line whose runs of wrong letters are marked."""
    text, wrong = "", False
    for own, right in zip(read, written, strict=True):
        if (own != right) != wrong:
            wrong = own != right
            text += '<span class="wrong">' if wrong else "</span>"
        text += escape(own)
    return text + "</span>" * wrong


def _short(value: JSON) -> str | None:
    """Return a value as HTML; None for one that is too long for a table."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Sequence) and len(value) <= _FEW:
        parts = [_short(part) for part in value if not isinstance(part, Sequence | Mapping) or isinstance(part, str)]
        if len(parts) == len(value):
            return ", ".join(part for part in parts if part is not None)
    return None
