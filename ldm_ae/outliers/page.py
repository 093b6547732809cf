"""The page of outliers: one HTML file with everything in it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import torch

from ldm_ae.evaluation.report.page import bars, count, document, number, table
from ldm_ae.evaluation.report.protocol_page import protocol_table
from ldm_ae.evaluation.report.viewer import CONTENT_POLICY, VIEWER, VIEWER_STYLE, view, views
from ldm_ae.images.in_memory import levels_image

if TYPE_CHECKING:
    from ldm_ae.outliers.found import Outliers, Shown

PAGE_STYLE = (
    ".strange{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}"
    ".strange figure{margin:0}.strange .two{display:grid;grid-template-columns:1fr 1fr;gap:.5rem}"
    ".chosen{font-weight:600}"
)
_SMALL = 128
"""Width of images below which their pixels are shown as squares."""
_BINS = 40


def render(found: Outliers) -> str:
    """Return the page. All data is escaped; nothing is loaded from elsewhere."""
    kind = found.kinds[found.ranking]
    source = escape(str(found.protocol["images"]["source"]))
    name = escape(str(found.protocol["model"]["name"]))
    lead = (
        f"{count(len(found.keys), 'image')} of {source}, scored by {name} and ranked by "
        f"{escape(kind.label.lower())} ({escape(found.ranking)})."
    )
    title = f"Outliers of {source}"
    return document(
        title, kicker="Outliers", heading=title, lead=lead, top="",
        sections=[
            ("strangest", f"The {len(found.shown)} strangest images", _gallery(found)),
            ("scores", "Scores", _scores(found) + _histograms(found)),
            ("protocol", "Protocol", protocol_table(found.protocol)),
        ],
        policy=CONTENT_POLICY, style=VIEWER_STYLE + PAGE_STYLE, end=VIEWER,
    )  # fmt: skip


def _gallery(found: Outliers) -> str:
    note = "<p>Each image and its reconstruction. Click one to enlarge and compare them.</p>"
    figures = "".join(_figure(found, rank, shown) for rank, shown in enumerate(found.shown, 1))
    return f'{note}<div class="strange">{figures}</div>'


def _figure(found: Outliers, rank: int, shown: Shown) -> str:
    key = found.keys[shown.row]
    pixels = shown.original.shape[-1] < _SMALL
    cells = [
        view("original", levels_image(shown.original), pixels=pixels),
        view("reconstruction", levels_image(shown.reconstruction), pixels=pixels),
    ]
    percentile = float(found.percentiles(found.ranking)[shown.row])
    values = " · ".join(f"{escape(name)} {number(float(found.scores[name][shown.row]))}" for name in found.kinds)
    caption = (
        f"<figcaption><b>{rank}. {escape(key)}</b>stranger than {percentile:.1f} % of the reference<br>{values}"
        "</figcaption>"
    )
    return f"<figure>{views(key, cells, css='two')}{caption}</figure>"


def _scores(found: Outliers) -> str:
    """Return what the scores are, with the AUROC where there is one, and why others are missing."""
    header = ["Score", "Unit", *(["AUROC"] if found.auroc else []), "Explanation"]
    rows = []
    for name, kind in found.kinds.items():
        css = ' class="chosen"' if name == found.ranking else ""
        area = [f"{found.auroc[name]:.3f}"] if found.auroc else []
        rows.append((f"<span{css}>{escape(name)}</span>", escape(kind.unit), *area, escape(kind.explanation)))
    note = "<p>Higher is stranger. The score that ranks the images is in bold.</p>"
    if found.auroc:
        against = escape(str(found.protocol["against"]["source"]))
        note += (
            f"<p>AUROC: the probability that a score calls an image of {against} stranger than one of "
            f"{escape(str(found.protocol['images']['source']))}; 0.5 is chance.</p>"
        )
    missing = "".join(f"<p><b>{escape(name)}</b> is missing: {escape(why)}.</p>" for name, why in found.skipped.items())
    return note + table(header, rows, numbers=(2,) if found.auroc else (), css="protocol") + missing


def _histograms(found: Outliers) -> str:
    """Return the histogram of each score over all images."""
    parts = []
    for name, kind in found.kinds.items():
        values = found.scores[name]
        low, high = float(values.min()), float(values.max())
        counts = torch.histc(values, _BINS, low, high).int().tolist() if high > low else [len(values)]
        title = f"Histogram of {kind.title}"
        parts.append(f"<div><b>{escape(kind.title)}</b>{bars(counts, (number(low), number(high)), title)}</div>")
    return f'<h3>Histograms over the images</h3><div class="small-multiples">{"".join(parts)}</div>'
