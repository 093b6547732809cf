"""An evaluation as files: `metrics.json` for programs and `report.html`, a single self-contained page, for people."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.activation_ranges import FP16_LIMIT
from ldm_ae.evaluation.latent_summary import HISTOGRAM_DEVIATIONS
from ldm_ae.evaluation.report.codebook_page import codebook_section
from ldm_ae.evaluation.report.details_page import (
    DETAILS_STYLE,
    Models,
    correlation_matrices,
    other_details,
    spectra,
    text_tables,
)
from ldm_ae.evaluation.report.page import bars, count, document, number, table
from ldm_ae.evaluation.report.pictures import ERROR_GAIN, LATENT_REACH, error_map, latent_channel_pictures
from ldm_ae.evaluation.report.plots import PLOT_STYLE, svg
from ldm_ae.evaluation.report.protocol_page import facts, protocol_table
from ldm_ae.evaluation.report.scores_page import headline, scores_table
from ldm_ae.evaluation.report.viewer import CONTENT_POLICY, VIEWER, VIEWER_STYLE, view, views
from ldm_ae.evaluation.result import Evaluation, Picture
from ldm_ae.evaluation.scoring import BASELINE_PREFIX
from ldm_ae.images.in_memory import levels_image
from ldm_ae.images.uint8 import from_levels
from ldm_ae.io.files import make_folder, write_json, writing

REPORT_FILES = ("metrics.json", "report.html")
"""The files that `write_report` writes."""
LATENT_PICTURES = 4
TABLE_ROWS = 500
WORST_MODULES = 8

_NOTE = (
    "<p>Click an image to enlarge it and to compare it with the original, by a slider or a blink. "
    f"Errors are multiplied by {ERROR_GAIN:g}: the lightest colour is a mean difference over red, green and blue "
    f"of {100 / ERROR_GAIN:g} % of the range or more.</p>"
)


def write_report(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write `metrics.json` and `report.html` into `folder`, which is created if necessary, and return the page's path.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = make_folder(folder)
    page = render(evaluation)
    try:
        write_json(folder / "metrics.json", metrics(evaluation))
        with writing(folder / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from error
    return folder / "report.html"


def metrics(evaluation: Evaluation) -> dict[str, object]:
    """Return the content of `metrics.json`: scores, their explanations, details and protocol, warnings, activations,
    codes, and the tables of channels and images."""
    return {
        "scores": evaluation.scores,
        "score_infos": {name: asdict(info) for name, info in evaluation.infos.items()},
        "details": evaluation.details,
        "protocol": evaluation.protocol,
        "warnings": [asdict(warning) for warning in evaluation.warnings],
        "activations": evaluation.activations.describe(),
        "codebook": None if evaluation.codebook is None else evaluation.codebook.describe(),
        "latent_channels": [asdict(channel) for channel in evaluation.channels],
        "images": [{"key": row.key, **row.scores} for row in evaluation.images],
    }


def render(evaluation: Evaluation) -> str:
    """Return the page. All data is escaped; nothing is loaded from elsewhere."""
    model = evaluation.protocol["model"]
    assert isinstance(model, dict)
    name = escape(str(model["name"]))
    lead = (
        f"{escape(str(model['class']))}, downsample factor {model['downsample_factor']}, "
        f"{model['latent_channels']} latent channels, {model['parameters'] / 1e6:.1f} M parameters."
    )
    ranking = "" if evaluation.ranking is None else escape(evaluation.infos[evaluation.ranking].label)
    more = len(evaluation.images) > len(evaluation.first)  # else the first images are all of them
    everything = "The first images" if more else "The images"
    details = [(str(model["name"]), evaluation.details)]
    sections = [
        ("measured", "How it was measured", facts(evaluation)),
        ("images", everything, _NOTE + _gallery(evaluation, evaluation.first) if evaluation.first else ""),
        ("worst", f"The worst, by {ranking}", _gallery(evaluation, evaluation.worst) if more else ""),
        ("best", f"The best, by {ranking}", _gallery(evaluation, evaluation.best) if more else ""),
        ("scores", "Scores", scores_table(evaluation)),
        ("distribution", f"{ranking} of each image", _distribution(evaluation)),
        ("details", "Results beyond single numbers", _details(details)),
        ("codes", "Codes in use", codebook_section(evaluation.codebook)),
        ("latents", "Latent channels", _latents(evaluation)),
        ("activations", "Range of activations", _activations(evaluation)),
        ("protocol", "Protocol", protocol_table(evaluation.protocol)),
        ("table", "All images", _image_table(evaluation)),
    ]
    return document(
        f"Evaluation of {name}", kicker="Autoencoder evaluation", heading=name, lead=lead, top=headline(evaluation),
        sections=sections, policy=CONTENT_POLICY, style=VIEWER_STYLE + PLOT_STYLE + DETAILS_STYLE, end=VIEWER,
    )  # fmt: skip


def _gallery(evaluation: Evaluation, pictures: list[Picture]) -> str:
    if not pictures:
        return ""
    figures = []
    for picture in pictures:
        original, reconstruction = from_levels(picture.original), from_levels(picture.reconstruction)
        cells = (
            view("original", levels_image(picture.original)),
            view("reconstruction", levels_image(picture.reconstruction)),
            view(f"error ×{ERROR_GAIN:g}", error_map(original, reconstruction)),
            view("thumbnail", levels_image(picture.thumbnail)),
        )
        group = views(picture.row.key, cells, css="pair")
        caption = f"<b>{escape(picture.row.key)}</b> {_caption(evaluation, picture.row.scores)}"
        figures.append(f"<figure>{group}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="gallery">{"".join(figures)}</div>'


def _caption(evaluation: Evaluation, scores: dict[str, float]) -> str:
    parts = []
    for name, value in scores.items():
        if name.startswith(BASELINE_PREFIX):
            continue
        info = evaluation.infos[name]
        words = escape(f"{info.label} {info.text(value)}")
        if name == evaluation.ranking and (baseline := scores.get(BASELINE_PREFIX + name)) is not None:
            words += f", thumbnail {baseline:.{info.decimals}f}"
        parts.append(words)
    return " · ".join(parts)


def _distribution(evaluation: Evaluation) -> str:
    """Return a histogram of the score that ranks the images."""
    if evaluation.ranking is None:
        return ""
    name, info = evaluation.ranking, evaluation.infos[evaluation.ranking]
    values = torch.tensor([row.scores[name] for row in evaluation.images], dtype=torch.float64)
    low, high = float(values.min()), float(values.max())
    bins = min(max(len(values) // 4, 8), 40)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    counts = ((values - low) / (high - low) * bins).floor().long().clamp(0, bins - 1).bincount(minlength=bins)
    quartiles = torch.quantile(values[:: max(len(values) // 100_000, 1)], torch.tensor([0.25, 0.5, 0.75]).double())
    first, second, third = quartiles.tolist()
    note = f"quartiles {first:.{info.decimals}f}, {second:.{info.decimals}f} and {info.text(third)}"
    ends = (info.text(low), info.text(high))
    return (
        f"<p>Mean {escape(info.text(evaluation.scores[name]))}; {escape(note)}.</p>"
        f'<div class="wide">{bars(counts.tolist(), ends, f"Distribution of {info.label}")}</div>'
    )


def _details(models: Models) -> str:
    """Return the results that are not single numbers."""
    chart = svg(spectra(models))
    parts = (f'<div class="charts">{chart}</div>' if chart else "", correlation_matrices(models), text_tables(models))
    return "".join(parts) + other_details(models)


def _latents(evaluation: Evaluation) -> str:
    channels = evaluation.channels
    mean, std = (torch.tensor([getattr(c, name) for c in channels]) for name in ("mean", "std"))
    strips = []
    for picture in evaluation.first[:LATENT_PICTURES]:
        cells = [view("original", levels_image(picture.original))]
        for i, channel in enumerate(latent_channel_pictures(picture.latents, mean=mean, std=std)):
            own = picture.latents[i]
            spread = f" ± {float(own.std(correction=0)):.2f}" if own.numel() > 1 else ""  # a vector has one value
            numbers = f"<b>{i}</b> {float(own.mean()):+.2f}{spread}"
            cells.append(view(f"channel {i}", channel, caption=numbers, pixels=True))
        key = picture.row.key
        strips.append(f"<figure>{views(key, cells, css='strip')}<figcaption><b>{escape(key)}</b></figcaption></figure>")
    rows = [
        (
            str(i),
            f"{c.mean:+.4f}",
            f"{c.std:.4f}",
            "" if c.kl_nats is None else f"{c.kl_nats:.4f}",
            {True: "yes", False: "no", None: ""}[c.active],
        )
        for i, c in enumerate(channels)
    ]
    histograms = "".join(
        f"<div><b>{i}</b>"
        + bars(list(c.histogram), (f"{c.histogram_range[0]:.2f}", f"{c.histogram_range[1]:.2f}"), f"Channel {i}")
        + "</div>"
        for i, c in enumerate(channels)
    )
    return (
        f"<p>The posterior's mode. Colours run from {LATENT_REACH:g} standard deviations below the channel's mean "
        f"(dark) to as many above (light); under each image its own mean ± standard deviation, or "
        "the value of a vector's channel.</p>"
        f'<div class="gallery">{"".join(strips)}</div>'
        f"<h3>Distribution of each channel</h3><p>One posterior sample per image, {HISTOGRAM_DEVIATIONS:g} standard "
        f'deviations around the mean.</p><div class="small-multiples">{histograms}</div>'
        + table(("Channel", "Mean", "Std", "KL, nats per element", "Active"), rows, numbers=(0, 1, 2, 3), css="narrow")
    )


def _activations(evaluation: Evaluation) -> str:
    found = evaluation.activations
    shown = list(found.modules.items())[:WORST_MODULES]
    rows = [(f"<code>{escape(name)}</code>", f"{value:.4g}", f"{value / FP16_LIMIT:.2%}") for name, value in shown]
    note = (
        f"The {len(shown)} modules of {len(found.modules)} whose outputs are largest, in float32; metrics.json has all."
    )
    line = found.line()
    return f"<p>{escape(line[0].upper() + line[1:])}.</p><p>{note}</p>" + table(
        ("Module", "Largest value", "Fraction of fp16's limit"), rows, numbers=(1, 2), css="narrow"
    )


def _image_table(evaluation: Evaluation) -> str:
    ranking = "" if evaluation.ranking is None else BASELINE_PREFIX + evaluation.ranking
    names = [name for name in evaluation.images[0].scores if name == ranking or not name.startswith(BASELINE_PREFIX)]
    titles = [evaluation.infos[name.removeprefix(BASELINE_PREFIX)].title for name in names]
    labels = [
        escape(f"Thumbnail {title}" if name == ranking else title) for name, title in zip(names, titles, strict=True)
    ]
    shown = evaluation.images[:TABLE_ROWS]
    rows = [(escape(row.key), *(number(row.scores[name]) for name in names)) for row in shown]
    total = len(evaluation.images)
    note = f"The first {TABLE_ROWS} of {total}; metrics.json has all." if total > TABLE_ROWS else count(total, "image")
    content = table(("Image", *labels), rows, numbers=tuple(range(1, len(names) + 1)), css="images")
    return f"<details><summary>{note}</summary>{content}</details>"
