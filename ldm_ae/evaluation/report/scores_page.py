"""The report's cards and table of scores."""

from __future__ import annotations

from html import escape

from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.evaluation.report.page import number, table
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.evaluation.scoring import BASELINE_PREFIX


def headline(evaluation: Evaluation) -> str:
    """Return a card for each score that the thumbnail has too. A score over too few images has no card: it stands grey
    below them, with the reason."""
    cards, unsure = [], []
    for name, value in evaluation.scores.items():
        baseline = evaluation.scores.get(BASELINE_PREFIX + name)
        if baseline is None:
            continue
        info = evaluation.infos[name]
        reason = info.caution(len(evaluation.images))
        if reason:
            unsure.append(
                f'<p class="unsure">{escape(info.title)} <b>{number(value)}</b>, the thumbnail\'s {number(baseline)}: '
                f"not a result yet, as it is {escape(reason)}.</p>"
            )
            continue
        cards.append(
            f"<li><span>{escape(info.title)}</span><strong>{number(value)}</strong>"
            f"{_verdict(info, value, baseline)}</li>"
        )
    return f'<ul class="headline">{"".join(cards)}</ul>{"".join(unsure)}'


def _verdict(info: ScoreInfo, value: float, baseline: float) -> str:
    if not info.direction:
        return f"<small>the thumbnail has {number(baseline)}</small>"
    wins = info.wins(value, baseline)
    verdict = "better than" if wins else "equal to" if value == baseline else "worse than"
    return f'<small class="{"wins" if wins else "loses"}">{verdict} the thumbnail\'s {number(baseline)}</small>'


def scores_table(evaluation: Evaluation) -> str:
    """Return all scores with what they mean; one over too few images is grey, with the reason."""
    rows = []
    for name, value in evaluation.scores.items():
        if name.startswith(BASELINE_PREFIX):
            continue
        info = evaluation.infos[name]
        baseline = evaluation.scores.get(BASELINE_PREFIX + name)
        reason = info.caution(len(evaluation.images))
        sentences = (info.better, info.explanation, f"Grey, as it is {reason}." if reason else "")
        arrow = f" {info.arrow}" if info.arrow else ""
        explanation = " ".join(sentence for sentence in sentences if sentence)
        score = f"{escape(info.title)}{arrow}<small>{escape(explanation)}</small>"
        cells = (score, number(value), "" if baseline is None else number(baseline))
        rows.append(tuple(f'<span class="unsure">{cell}</span>' for cell in cells) if reason else cells)
    text = evaluation.protocol["baseline"]
    assert isinstance(text, dict)
    note = (
        f"<p>The baseline is a thumbnail of {escape(str(text['thumbnail_size']))} pixels: "
        f"{escape(str(text['method']))}.</p>"
    )
    return note + table(("Score", "Model", "Thumbnail"), rows, numbers=(1, 2), css="scores")
