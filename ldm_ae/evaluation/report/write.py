"""An evaluation as files: `metrics.json` for programs and `report.html`, a single self-contained page, for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from pathlib import Path

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.activation_ranges import FP16_LIMIT
from ldm_ae.evaluation.evaluate import Evaluation, Picture
from ldm_ae.evaluation.latent_summary import HISTOGRAM_DEVIATIONS
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.evaluation.report.codebook_page import codebook_section
from ldm_ae.evaluation.report.page import STYLE, bars, data_uri, table
from ldm_ae.evaluation.report.pictures import ERROR_GAIN, LATENT_REACH, error_map, latent_channel_pictures
from ldm_ae.evaluation.scoring import BASELINE_PREFIX
from ldm_ae.images.in_memory import levels_image
from ldm_ae.images.uint8 import from_levels
from ldm_ae.io.files import make_folder, write_json, writing

REPORT_FILES = ("metrics.json", "report.html")
"""The files that `write_report` writes."""
LATENT_PICTURES = 4
TABLE_ROWS = 500
WORST_MODULES = 8

ERROR_NOTE = (
    f"<p>Errors are multiplied by {ERROR_GAIN:g}: the lightest colour is a mean difference over red, green and blue "
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
    """Return the content of `metrics.json`: scores, their protocol, activations, codes, and the tables of channels and
    images."""
    return {
        "scores": evaluation.scores,
        "protocol": evaluation.protocol,
        "activations": evaluation.activations.describe(),
        "codebook": None if evaluation.codebook is None else evaluation.codebook.describe(),
        "latent_channels": [asdict(channel) for channel in evaluation.channels],
        "images": [{"key": row.key, **row.scores} for row in evaluation.images],
    }


def render(evaluation: Evaluation) -> str:
    """Return the page. All data is escaped; nothing is loaded from elsewhere."""
    model = evaluation.protocol["model"]
    images = evaluation.protocol["images"]
    assert isinstance(model, dict)
    assert isinstance(images, dict)
    count = _count(len(evaluation.images), "image")
    name = escape(str(model["name"]))
    lead = (
        f"{escape(str(model['class']))}, downsample factor {model['downsample_factor']}, "
        f"{model['latent_channels']} latent channels, {model['parameters'] / 1e6:.1f} M parameters; "
        f"{count} of {escape(str(images['size']))} pixels from {escape(str(images['source']))}."
    )
    ranking = "" if evaluation.ranking is None else escape(evaluation.infos[evaluation.ranking].label)
    sections = [
        ("Scores", _scores(evaluation)),
        ("The first images", ERROR_NOTE + _gallery(evaluation, evaluation.first) if evaluation.first else ""),
        (f"The worst, by {ranking}", _gallery(evaluation, evaluation.worst)),
        (f"The best, by {ranking}", _gallery(evaluation, evaluation.best)),
        (f"{ranking} of each image", _distribution(evaluation)),
        ("Codes in use", codebook_section(evaluation.codebook)),
        ("Latent channels", _latents(evaluation)),
        ("Range of activations", _activations(evaluation)),
        ("Protocol", _protocol(evaluation)),
        ("All images", _image_table(evaluation)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Evaluation of {name}</title><style>{STYLE}</style></head>"
        f'<body><header><p class="kicker">Autoencoder evaluation</p><h1>{name}</h1><p class="lead">{lead}</p>'
        f"{_headline(evaluation)}</header><main>{body}</main></body></html>\n"
    )


def _scores(evaluation: Evaluation) -> str:
    rows = []
    for name, value in evaluation.scores.items():
        if name.startswith(BASELINE_PREFIX):
            continue
        info = evaluation.infos[name]
        baseline = evaluation.scores.get(BASELINE_PREFIX + name)
        arrow = f" {info.arrow}" if info.arrow else ""
        explanation = " ".join(sentence for sentence in (info.better, info.explanation) if sentence)
        score = f"{escape(info.title)}{arrow}<small>{escape(explanation)}</small>"
        rows.append((score, _number(value), "" if baseline is None else _number(baseline)))
    baseline_text = evaluation.protocol["baseline"]
    assert isinstance(baseline_text, dict)
    note = (
        f"<p>The baseline is a thumbnail of {escape(str(baseline_text['thumbnail_size']))} pixels: "
        f"{escape(str(baseline_text['method']))}.</p>"
    )
    return note + table(("Score", "Model", "Thumbnail"), rows, numbers=(1, 2), css="scores")


def _headline(evaluation: Evaluation) -> str:
    cards = []
    for name, value in evaluation.scores.items():
        baseline = evaluation.scores.get(BASELINE_PREFIX + name)
        if baseline is None:
            continue
        info = evaluation.infos[name]
        if info.direction:
            wins = info.wins(value, baseline)
            verdict = "better than" if wins else "equal to" if value == baseline else "worse than"
            css = "wins" if wins else "loses"
            small = f'<small class="{css}">{verdict} the thumbnail\'s {_number(baseline)}</small>'
        else:
            small = f"<small>the thumbnail has {_number(baseline)}</small>"
        cards.append(f"<li><span>{escape(info.title)}</span><strong>{_number(value)}</strong>{small}</li>")
    return f'<ul class="headline">{"".join(cards)}</ul>'


def _gallery(evaluation: Evaluation, pictures: list[Picture]) -> str:
    if not pictures:
        return ""
    figures = []
    for picture in pictures:
        original, reconstruction = from_levels(picture.original), from_levels(picture.reconstruction)
        views = (
            ("original", levels_image(picture.original)),
            ("reconstruction", levels_image(picture.reconstruction)),
            (f"error ×{ERROR_GAIN:g}", error_map(original, reconstruction)),
            ("thumbnail", levels_image(picture.thumbnail)),
        )
        cells = "".join(
            f'<div><img src="{data_uri(view)}" alt="{label}" width="{view.width}" height="{view.height}">'
            f"<span>{label}</span></div>"
            for label, view in views
        )
        caption = f"<b>{escape(picture.row.key)}</b> {_caption(evaluation, picture.row.scores)}"
        figures.append(f'<figure><div class="views">{cells}</div><figcaption>{caption}</figcaption></figure>')
    return f'<div class="gallery">{"".join(figures)}</div>'


def _caption(evaluation: Evaluation, scores: dict[str, float]) -> str:
    parts = []
    for name, value in scores.items():
        if name.startswith(BASELINE_PREFIX):
            continue
        info = evaluation.infos[name]
        words = escape(f"{info.label} {_with_unit(info, value)}")
        if name == evaluation.ranking and (baseline := scores.get(BASELINE_PREFIX + name)) is not None:
            words += f", thumbnail {baseline:.{info.decimals}f}"
        parts.append(words)
    return " · ".join(parts)


def _with_unit(info: ScoreInfo, value: float) -> str:
    return f"{value:.{info.decimals}f} {info.unit}".rstrip()


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
    note = f"quartiles {first:.{info.decimals}f}, {second:.{info.decimals}f} and {_with_unit(info, third)}"
    ends = (_with_unit(info, low), _with_unit(info, high))
    return (
        f"<p>Mean {escape(_with_unit(info, evaluation.scores[name]))}; {escape(note)}.</p>"
        f'<div class="wide">{bars(counts.tolist(), ends, f"Distribution of {info.label}")}</div>'
    )


def _latents(evaluation: Evaluation) -> str:
    channels = evaluation.channels
    mean, std = (torch.tensor([getattr(c, name) for c in channels]) for name in ("mean", "std"))
    strips = []
    for picture in evaluation.first[:LATENT_PICTURES]:
        cells = [
            f'<div><img src="{data_uri(levels_image(picture.original))}" alt="original"><span>original</span></div>'
        ]
        for i, view in enumerate(latent_channel_pictures(picture.latents, mean=mean, std=std)):
            own = picture.latents[i]
            numbers = f"{float(own.mean()):+.2f} ± {float(own.std(correction=0)):.2f}"
            image = f'<img class="pixels" src="{data_uri(view)}" alt="channel {i}">'
            cells.append(f"<div>{image}<span><b>{i}</b> {numbers}</span></div>")
        strips.append(
            f'<figure><div class="strip">{"".join(cells)}</div>'
            f"<figcaption><b>{escape(picture.row.key)}</b></figcaption></figure>"
        )
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
        f"(dark) to as many above (light); under each image its own mean ± standard deviation.</p>"
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


def _protocol(evaluation: Evaluation) -> str:
    rows: list[tuple[str, ...]] = []
    for name, value in evaluation.protocol.items():
        if isinstance(value, dict):
            rows += [(_words(f"{name}: {part}"), _value(inner)) for part, inner in value.items()]
        else:
            rows.append((_words(name), _value(value)))
    return table(("Setting", "Value"), rows, numbers=(), css="protocol")


def _image_table(evaluation: Evaluation) -> str:
    ranking = "" if evaluation.ranking is None else BASELINE_PREFIX + evaluation.ranking
    names = [name for name in evaluation.images[0].scores if name == ranking or not name.startswith(BASELINE_PREFIX)]
    titles = [evaluation.infos[name.removeprefix(BASELINE_PREFIX)].title for name in names]
    labels = [
        escape(f"Thumbnail {title}" if name == ranking else title) for name, title in zip(names, titles, strict=True)
    ]
    shown = evaluation.images[:TABLE_ROWS]
    rows = [(escape(row.key), *(_number(row.scores[name]) for name in names)) for row in shown]
    total = len(evaluation.images)
    note = f"The first {TABLE_ROWS} of {total}; metrics.json has all." if total > TABLE_ROWS else _count(total, "image")
    content = table(("Image", *labels), rows, numbers=tuple(range(1, len(names) + 1)), css="images")
    return f"<details><summary>{note}</summary>{content}</details>"


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, str | int | float):
        return escape(str(value))
    return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"
