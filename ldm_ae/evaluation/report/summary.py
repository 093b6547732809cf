"""The scores as lines for a terminal, with what a bicubic thumbnail of as many numbers has beside them."""

from __future__ import annotations

from ldm_ae.evaluation.evaluate import Evaluation

BASELINE_PREFIX = "bicubic_"


def summary_lines(evaluation: Evaluation) -> list[str]:
    """A table: score, model, baseline where there is one; then a line on each score that was skipped, one on the codes
    in use if there are any, and one on whether the model is safe in fp16."""
    scores = evaluation.scores
    names = [name for name in scores if not name.startswith(BASELINE_PREFIX)]
    width = max(len(name) for name in names)
    lines = [f"{'':{width}}  {'model':>10}  thumbnail"]
    for name in names:
        baseline = scores.get(BASELINE_PREFIX + name)
        lines.append(f"{name:{width}}  {scores[name]:10.4g}" + ("" if baseline is None else f"  {baseline:9.4g}"))
    codebook = [] if evaluation.codebook is None else [evaluation.codebook.line()]
    skipped = [f"{name} is skipped: {why}" for name, why in evaluation.skipped.items()]
    return [*(line.rstrip() for line in lines), *skipped, *codebook, evaluation.activations.line()]
