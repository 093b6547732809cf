"""Validation scores of training runs, from their metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ldm_ae.comparison.result import Curve
from ldm_ae.training.monitoring.run_log import METRICS

_NO_SCORES = ("step", "phase", "seconds", "kind")


def run_of(model: str) -> Path | None:
    """Return the run directory that a model belongs to: RUN, `RUN@NAME`, or a path in it; None for other models."""
    path = Path(model)
    if not path.exists():
        path = Path(model.rpartition("@")[0])
        if not model.rpartition("@")[0]:
            return None
    return next((folder for folder in (path, *path.parents[:3]) if (folder / METRICS).is_file()), None)


def validation_curves(run: Path) -> dict[str, Curve]:
    """Return the validation scores of a run by key.

    Where a run was resumed from an earlier step, the later line of a step counts. Unfinished lines, as a killed process
    leaves them, and values that are not finite are skipped.
    """
    found: dict[str, dict[int, float]] = {}
    for text in (run / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or line.get("kind") != "validation" or not isinstance(line.get("step"), int):
            continue
        for key, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in _NO_SCORES and number and math.isfinite(value):
                found.setdefault(key, {})[line["step"]] = float(value)
    return {key: Curve(steps=sorted(points), values=[points[step] for step in sorted(points)])
            for key, points in found.items()}  # fmt: skip
