"""The scores as lines for a terminal, beside those of a bicubic thumbnail of as many numbers as the latents."""

from __future__ import annotations

import sys

from ldm_ae.evaluation.result import Evaluation
from ldm_ae.evaluation.scoring import BASELINE_PREFIX
from ldm_ae.evaluation.warnings import warned


def summary_lines(evaluation: Evaluation) -> list[str]:
    """Return a table (score with its better direction, model, baseline if there is one, label and unit), then a line on
    each skipped score, one on the codes in use if there are any, one on whether the model is safe in fp16, and the
    warnings on the model."""
    scores, infos = evaluation.scores, evaluation.infos
    names = {name: f"{name} {infos[name].arrow}".rstrip() for name in scores if not name.startswith(BASELINE_PREFIX)}
    width = max((len(name) for name in names.values()), default=0)
    lines = [f"{'':{width}}  {'model':>10}  thumbnail"]
    for name, shown in names.items():
        baseline = scores.get(BASELINE_PREFIX + name)
        beside = "" if baseline is None else f"{baseline:.4g}"
        caution = infos[name].caution(len(evaluation.images)) or warned(name, evaluation.warnings)
        title = f"{infos[name].title} ({caution})" if caution else infos[name].title
        lines.append(f"{shown:{width}}  {scores[name]:10.4g}  {beside:>9}  {title}")
    codebook = [] if evaluation.codebook is None else [evaluation.codebook.line()]
    skipped = [f"{name} is skipped: {why}" for name, why in evaluation.skipped.items()]
    activations = evaluation.activations.line()
    warnings = [f"warning: {warning.text}" for warning in evaluation.warnings if warning.text != activations]
    lines = [*(line.rstrip() for line in lines), *skipped, *codebook, activations, *warnings]
    return [for_terminal(line) for line in lines]


def for_terminal(line: str) -> str:
    """Replace characters that stdout's encoding lacks: arrows by ^ and v, other characters by question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    for arrow, plain in (("↑", "^"), ("↓", "v")):
        line = line.replace(arrow, arrow if arrow.encode(encoding, "replace") != b"?" else plain)
    return line.encode(encoding, "replace").decode(encoding)
