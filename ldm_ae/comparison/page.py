"""The page of a comparison: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_ae.comparison.charts import flow_losses, rate_distortion, training_curves
from ldm_ae.comparison.codecs import codec_colours
from ldm_ae.comparison.main_scores import main_scores
from ldm_ae.comparison.pictures import gallery, sample_grids
from ldm_ae.comparison.result import GROUPS, score_infos
from ldm_ae.comparison.score_tables import TABLE_SCRIPT, scores_table, winners
from ldm_ae.evaluation.report.details_page import (
    DETAILS_STYLE,
    correlation_matrices,
    other_details,
    spectra,
    text_tables,
)
from ldm_ae.evaluation.report.page import count, document, table
from ldm_ae.evaluation.report.plots import PLOT_STYLE, Chart, legend, svg, swatch
from ldm_ae.evaluation.report.protocol_page import protocol_table
from ldm_ae.evaluation.report.viewer import VIEWER, VIEWER_SCRIPT, VIEWER_STYLE, content_policy

if TYPE_CHECKING:
    from ldm_ae.comparison.comparison import Comparison
    from ldm_ae.comparison.result import ModelResult

PAGE_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8").replace("\n", "")
_NOTE = (
    "<p>The same images by every model. Click one to enlarge it: a slider, a blink or the difference compares any two, "
    "and scrolling or two fingers zoom.</p>"
)
_OF_GROUPS = {
    "rate": "<p>A better model is further up for a higher-is-better score, and further left for a smaller rate. The "
    "rate is that of codes at a fixed length, and of other latents in fp16.</p>",
    "latents": "",
    "diffusion": "<p>The same small diffusion transformer learns the latents of each model, with the same seed, "
    "batches and steps. The ranking is what counts: a larger budget lowers all losses.</p>",
}


def render(comparison: Comparison) -> str:
    """Return the page. All data is escaped; nothing is loaded from elsewhere."""
    models, images = comparison.models, int(comparison.protocol["images"]["count"])
    of_images = comparison.protocol["images"]
    title = f"{count(len(models), 'autoencoder')} compared"
    lead = f"{count(images, 'image')} of {escape(str(of_images['source']))}, {_size(of_images)}."
    return document(
        title, kicker="Autoencoder comparison", heading=title, lead=lead,
        top=_failed(comparison) + _warnings(models) + winners(models), sections=_sections(comparison),
        policy=content_policy(VIEWER_SCRIPT, TABLE_SCRIPT),
        style=VIEWER_STYLE + PLOT_STYLE + DETAILS_STYLE + PAGE_STYLE, end=f"{VIEWER}<script>{TABLE_SCRIPT}</script>",
    )  # fmt: skip


def _sections(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the sections: their places, titles and content, which may be empty."""
    models, codecs = comparison.models, comparison.codecs.results
    infos = score_infos(models)
    names = [(model.name, number) for number, model in enumerate(models)]
    details = [(model.name, model.details) for model in models]
    charts: dict[str, str] = {
        "reconstruction": text_tables(details),
        "rate": _charts(rate_distortion(comparison), [*names, *codec_colours(codecs, len(models)).items()]),
        "latents": _charts([spectra(details)], names) + correlation_matrices(details) + other_details(details),
        "diffusion": _charts([flow_losses(models)], names) + sample_grids(models),
    }
    sections = [
        ("overview", "Overview", scores_table(models, main_scores(models))),
        ("images", "Reconstructions", _NOTE + gallery(comparison)),
    ]
    for group, title in GROUPS.items():
        own = {key: info for key, info in infos.items() if info.group == group}
        beside = codecs if group == "reconstruction" else ()
        content = scores_table(models, own, beside) + charts.get(group, "")
        place = f"scores-{group}" if group == "reconstruction" else group
        name = "All scores of reconstruction" if group == "reconstruction" else title
        sections.append((place, name, _OF_GROUPS.get(group, "") + content if content else ""))
    curves = training_curves(models)
    trained = [(model.name, number) for number, model in enumerate(models) if model.curves]
    return [
        *sections,
        ("training", "Validation during training", _charts(curves, trained)),
        ("models", "Models", _models(comparison)),
        ("protocol", "Protocol", _protocol(comparison)),
    ]


def _warnings(models: Sequence[ModelResult]) -> str:
    """Return the warnings on the models, above the scores."""
    pairs = [(model.name, warning.text) for model in models for warning in model.warnings]
    if not pairs:
        return ""
    rows = "".join(f"<p><b>{escape(name)}</b> {escape(text)}</p>" for name, text in pairs)
    return f'<div class="failed"><p><b>{count(len(pairs), "warning")}</b></p>{rows}</div>'


def _charts(charts: list[Chart], names: list[tuple[str, int]]) -> str:
    drawn = [chart for chart in charts if not chart.empty]
    if not drawn:
        return ""
    shown = {series.name for chart in drawn for series in chart.series if chart.points(series)}
    entries = [(name, number) for name, number in names if name in shown]
    return f'{legend(entries)}<div class="charts">{"".join(svg(chart) for chart in drawn)}</div>'


def _failed(comparison: Comparison) -> str:
    if not comparison.failed:
        return ""
    rows = "".join(f"<p><b>{escape(name)}</b> {escape(reason)}</p>" for name, reason in comparison.failed.items())
    return f'<div class="failed"><p><b>{count(len(comparison.failed), "model")} failed</b></p>{rows}</div>'


def _models(comparison: Comparison) -> str:
    """Return what each model is, and what is missing of it."""
    header = ("Name", "Model", "Class", "Factor", "Channels", "Parameters", "sha256")
    rows = []
    for number, result in enumerate(comparison.models):
        facts: dict[str, Any] = result.protocol["model"]
        name = escape(result.name)
        if result.folder is not None:
            name = f'<a href="{escape(result.folder)}/report.html">{name}</a>'
        rows.append((
            swatch(number) + name, escape(result.model), escape(str(facts["class"])), str(facts["downsample_factor"]),
            str(facts["latent_channels"]), f"{facts['parameters'] / 1e6:.1f} M",
            f"<code>{escape(str(facts['sha256'])[:12])}</code>",
        ))  # fmt: skip
    missing = [
        (escape(name), escape(key), escape(reason))
        for name, key, reason in [
            *((model.name, key, reason) for model in comparison.models for key, reason in model.skipped.items()),
            *((name, "codec", reason) for name, reason in comparison.codecs.skipped.items()),
            *((result.name, "codec", result.note) for result in comparison.codecs.results if result.note),
        ]
    ]
    skipped = "" if not missing else (
        f'<details class="explained"><summary>{count(len(missing), "missing score")}</summary>'
        + table(("Model", "Score", "Reason"), missing, numbers=(), css="protocol") + "</details>"
    )  # fmt: skip
    return table(header, rows, numbers=(3, 4, 5), css="models") + skipped


def _protocol(comparison: Comparison) -> str:
    """Return what all results have in common, and the software."""
    names = ("reconstruction", "device", "memory_layout", "latent_statistics", "git_commit", "versions")
    first: ModelResult = comparison.models[0]
    return protocol_table(comparison.protocol, {name: first.protocol.get(name) for name in names})


def _size(images: dict[str, Any]) -> str:
    """Return the size of the images, and how it was chosen."""
    size = images["transform"].get("size")
    side = "x".join(map(str, size)) if isinstance(size, list) else ""
    return f"{side} pixels ({escape(images['size'])})" if side else escape(images["size"])
