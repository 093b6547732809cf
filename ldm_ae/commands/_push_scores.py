"""The scores of a metrics.json for a model card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError, printable
from ldm_ae.evaluation.metrics.frechet import RELIABLE_IMAGES
from ldm_ae.evaluation.metrics.interface import ScoreInfo
from ldm_ae.evaluation.scoring import BASELINE_PREFIX
from ldm_ae.interop.card import Measured, Score
from ldm_ae.interop.card.recipe import hub_dataset, public_name
from ldm_ae.io.files import require_json
from ldm_ae.models import Autoencoder, weights_sha256

METRICS_FILE = "metrics.json"
_OF_LATENTS = ("latent_mean", "latent_std", "scaling_factor", "count")
"""Numbers of metrics.json that describe images and latents; the card has them elsewhere or measured on other images."""
_FRECHET = ("rfid", "frechet_")
_NEEDED = {
    "scores": dict, "protocol.images.source": str, "protocol.images.count": int, "protocol.images.size": str,
    "protocol.images.transform": dict, "protocol.model.sha256": str, "protocol.baseline.method": str,
    "protocol.baseline.thumbnail_size": str, "protocol.versions": dict,
}  # fmt: skip
"""The entries that the card reads, with their types."""


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Return the content of metrics.json in the folder that `ldm-ae evaluate` wrote.

    Raises:
        UserError: There is none, or it lacks an entry that the card needs.
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {METRICS_FILE}; give the --out folder of ldm-ae evaluate")
    found = require_json(path)
    for key, kind in _NEEDED.items():
        value = found
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{path} is not a valid evaluation: expected {key}; run ldm-ae evaluate again")
    for name, value in found["scores"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{path} is not a valid evaluation: scores.{printable(name)} is not a finite number")
    assert isinstance(found, dict)
    return found


def require_same_model(model: Autoencoder, found: dict[str, Any], folder: str) -> None:
    """Raise UserError unless the scores are of these weights.

    Args:
        model: The exported model in float32.
        found: Content of metrics.json.
        folder: Its folder.
    """
    expected, got = weights_sha256(model), found["protocol"]["model"]["sha256"]
    if got != expected:
        raise UserError(
            f"{folder} is the evaluation of another model: expected weights with sha256 {expected[:12]}, got "
            f"{printable(got[:12])}. Evaluate this model, or give --images in place of --evaluation"
        )


def measured_from(found: dict[str, Any]) -> Measured:
    """Return what the card shows of metrics.json."""
    images = found["protocol"]["images"]
    scores = found["scores"]
    activations = found.get("activations")
    return Measured(
        scores=[
            _score(name, value, scores.get(BASELINE_PREFIX + name), _info(found, name), images["count"])
            for name, value in scores.items()
            if name not in _OF_LATENTS and not name.startswith(BASELINE_PREFIX)
        ],
        images=images["count"],
        source=public_name(images["source"]),
        dataset=hub_dataset(images["source"]),
        protocol=found["protocol"],
        activations=_verdict(activations) if isinstance(activations, dict) else "",
    )


def _score(name: str, value: float, baseline: float | None, info: ScoreInfo, images: int) -> Score:
    return Score(
        key=name, label=info.title, value=value, direction=info.direction, explanation=info.explanation,
        baseline=baseline, caution=info.caution(images),
    )  # fmt: skip


def _info(found: dict[str, Any], name: str) -> ScoreInfo:
    """Return the explanation of a score. A metrics.json from before 2026-11-28 has none, so that its scores have no
    direction; a Fréchet distance over few images is unreliable there too."""
    infos = found.get("score_infos")
    info = infos.get(name) if isinstance(infos, dict) else None
    fallback = ScoreInfo(label=name, reliable_images=RELIABLE_IMAGES if name.startswith(_FRECHET) else 1)
    if not isinstance(info, dict):
        return fallback
    try:
        return ScoreInfo(**info)
    except TypeError:  # the entries of another version
        return fallback


def _verdict(activations: dict[str, Any]) -> str:
    """Return whether the model is safe in fp16."""
    safe, largest, images = (activations.get("safe_in_fp16"), activations.get("largest"),
                             (activations.get("protocol") or {}).get("images"))  # fmt: skip
    if not isinstance(safe, bool):
        return ""
    size = f"{largest:.4g}" if isinstance(largest, int | float) else "not finite"
    words = "safe" if safe else "not safe; use bf16 or fp32"
    return f"{words} (the largest activation over {images} images is {size}, the limit 65504)"
