"""The main scores as tables: for a terminal, in Markdown and in LaTeX."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence

from ldm_ae.comparison.main_scores import main_scores
from ldm_ae.comparison.result import ModelResult, best_models, caution_of
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.evaluation.report.page import number
from ldm_ae.evaluation.report.summary import for_terminal

_BEST = "*"
_LONGEST_NAME = 24
_NARROWEST = 80
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip
_ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "": ""}


def terminal_lines(models: Sequence[ModelResult], failed: Mapping[str, str], *, width: int | None = None) -> list[str]:
    """Return the main scores, a line each and a column for each model, the best marked; then warnings and failures.

    Args:
        models: The models.
        failed: Reasons by the names of other models.
        width: Width of the terminal in characters; more models than fit stand in a table below. None is its own, and at
            least 80.
    """
    width = width or max(shutil.get_terminal_size((100, 40)).columns, _NARROWEST)
    infos = main_scores(models)
    labels = {key: f"{key} {info.arrow}".rstrip() for key, info in infos.items()}
    first = max((len(label) for label in labels.values()), default=0)
    best = {key: best_models(models, key) for key in infos}
    lines: list[str] = []
    shown: list[ModelResult] = []
    blocks: list[list[ModelResult]] = []
    for model in models:
        if shown and first + sum(_column(other) for other in [*shown, model]) > width:
            blocks.append(shown)
            shown = []
        shown = [*shown, model]
    for block in [*blocks, *([shown] if shown else [])]:
        lines += [""] if lines else []
        lines.append(" " * first + "".join(f"{_short(model.name):>{_column(model)}}" for model in block))
        for key, label in labels.items():
            cells = []
            for model in block:
                text = f"{model.scores[key]:.4g}" if key in model.scores else ""
                mark = _BEST if model.name in best[key] else " "
                cells.append(f"{text + mark:>{_column(model)}}")
            lines.append((f"{label:{first}}" + "".join(cells)).rstrip())
    if any(best.values()):
        lines.append(f"{_BEST} best of the models")
    cautions: dict[str, list[str]] = {}
    for key in infos:
        if caution := caution_of(models, key):
            cautions.setdefault(caution, []).append(key)
    lines += [f"not a result yet: {', '.join(keys)} ({caution})" for caution, keys in cautions.items()]
    lines += [f"{model.name}: warning: {warning.text}" for model in models for warning in model.warnings]
    lines += [f"{name} failed: {reason}" for name, reason in failed.items()]
    return [for_terminal(line) for line in lines]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _column(model: ModelResult) -> int:
    return max(len(_short(model.name)), 9) + 3


def markdown_table(models: Sequence[ModelResult]) -> str:
    """Return the main scores as a Markdown table, a row for each model, the best in bold."""
    infos = main_scores(models)
    header = ["Model", *(f"{_markdown(info.title)} {info.arrow}".rstrip() for info in infos.values())]
    rows = [header, ["---", *("---:" for _ in infos)]]
    rows += _rows(models, infos, _markdown, lambda text: f"**{text}**")
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def latex_table(models: Sequence[ModelResult]) -> str:
    """Return the main scores as a LaTeX table of the package booktabs, a row for each model, the best in bold."""
    infos = main_scores(models)
    header = ["Model", *(f"{_latex(info.title)}{_ARROWS[info.direction]}" for info in infos.values())]
    body = _rows(models, infos, _latex, lambda text: rf"\textbf{{{text}}}")
    lines = [
        "% \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(infos)}}}",
        r"\toprule",
        f"{' & '.join(header)} \\\\",
        r"\midrule",
        *(f"{' & '.join(row)} \\\\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _rows(
    models: Sequence[ModelResult], infos: Mapping[str, ScoreInfo], escape: Callable[[str], str],
    bold: Callable[[str], str],
) -> list[list[str]]:  # fmt: skip
    rows = []
    for model in models:
        row = [escape(model.name)]
        for key in infos:
            text = escape(number(model.scores[key])) if key in model.scores else ""
            row.append(bold(text) if model.name in best_models(models, key) else text)
        rows.append(row)
    return rows


def _markdown(text: str) -> str:
    text = " ".join(text.split())
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
