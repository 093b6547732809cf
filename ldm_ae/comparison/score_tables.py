"""The sortable tables of the page, and the cards above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ldm_ae.comparison.codecs import CodecResult, codec_colours
from ldm_ae.comparison.main_scores import main_scores
from ldm_ae.comparison.result import ModelResult, best_models, caution_of
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.evaluation.report.page import number
from ldm_ae.evaluation.report.plots import swatch

TABLE_SCRIPT = Path(__file__).with_name("table.js").read_text(encoding="utf-8")
_ORDERS = {"higher": "descending", "lower": "ascending", "": "descending"}
"""The order in which a first click sorts, by the better values."""


def scores_table(
    models: Sequence[ModelResult], infos: Mapping[str, ScoreInfo], codecs: Sequence[CodecResult] = ()
) -> str:
    """Return a sortable table with a row for each model, and an expandable explanation of its columns.

    Args:
        models: The models.
        infos: The scores of the columns, by key.
        codecs: Image codecs, in rows below the models; they cannot be the best.
    """
    if not infos:
        return ""
    best = {key: best_models(models, key) for key in infos}
    cautions = {key: caution_of(models, key) for key in infos}
    header = '<th scope="col" data-first="ascending"><button type="button">Model</button></th>'
    header += "".join(_header(info, cautions[key]) for key, info in infos.items())
    rows = []
    for place, model in enumerate(models):
        cells = "".join(
            _cell(
                model.scores.get(key),
                model.name in best[key],
                bool(cautions[key]),
                model.skipped.get(key),
                model.warned(key),
            )
            for key in infos
        )
        rows.append(_row(model.name, place, cells))
    colours = codec_colours(codecs, len(models))
    for codec in codecs:
        cells = "".join(_cell(codec.scores.get(key), False, bool(cautions[key])) for key in infos)
        rows.append(_row(codec.name, colours[codec.title], cells))
    explained = "".join(f"<div><dt>{escape(info.title)}</dt><dd>{escape(_sentences(info, cautions[key]))}</dd></div>"
                        for key, info in infos.items())  # fmt: skip
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody>'
        '</table></div><details class="explained"><summary>What these scores mean</summary>'
        f"<dl>{explained}</dl></details>"
    )


def winners(models: Sequence[ModelResult]) -> str:
    """Return a card for each main score that a model wins, without those over too few images."""
    cards = []
    for key, info in main_scores(models).items():
        names = best_models(models, key)
        if not names or caution_of(models, key):
            continue
        values = sorted(
            (model.scores[key] for model in models if key in model.scores and not model.warned(key)),
            reverse=info.direction == "higher",
        )
        place = next(number for number, model in enumerate(models) if model.name == names[0])
        others = "" if len(values) < 2 else f"{escape(info.text(values[0]))}, the next {_plain(values, info)}"
        cards.append(
            f"<li><span>{escape(info.label)} {info.arrow}</span><strong>{swatch(place)}"
            f"{escape(' and '.join(names))}</strong><small>{others}</small></li>"
        )
    return f'<ul class="winners">{"".join(cards)}</ul>' if cards else ""


def _plain(values: Sequence[float], info: ScoreInfo) -> str:
    return f"{next(value for value in values if value != values[0]):.{info.decimals}f}"


def _header(info: ScoreInfo, caution: str) -> str:
    unit = f"<small>{escape(info.unit)}</small>" if info.unit else ""
    label = f"{escape(info.label)} {info.arrow}".rstrip()
    return (
        f'<th scope="col" data-first="{_ORDERS[info.direction]}"><button type="button" '
        f'title="{escape(_sentences(info, caution))}">{label}{unit}</button></th>'
    )


def _sentences(info: ScoreInfo, caution: str) -> str:
    parts = (info.better, info.explanation, f"In italics, as it is {caution}." if caution else "")
    return " ".join(part for part in parts if part) or info.title


def _row(name: str, place: int, cells: str) -> str:
    return f'<tr><th scope="row" data-value="{escape(name)}">{swatch(place)}{escape(name)}</th>{cells}</tr>'


def _cell(value: float | None, best: bool, unsure: bool, missing: str | None = None, warned: str = "") -> str:
    """Return a score's cell: `missing` is why there is no score, `warned` why it is not comparable."""
    if value is None:
        title = f' title="{escape(missing)}"' if missing else ""
        return f'<td class="none"{title}>–</td>'
    unsure = unsure or bool(warned)
    css = " ".join(name for name, holds in (("best", best), ("unsure", unsure)) if holds)
    text = f'<span class="unsure">{number(value)}</span>' if unsure else number(value)
    title = f' title="{escape(f"Not ranked, as it is {warned}.")}"' if warned else ""
    return f'<td{f" class={chr(34)}{css}{chr(34)}" if css else ""}{title} data-value="{value!r}">{text}</td>'
