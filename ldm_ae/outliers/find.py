"""The search for outliers: every score of every image, and the strangest images with their reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Setting
from ldm_ae.evaluation.prepared import prepare
from ldm_ae.images.uint8 import to_uint8
from ldm_ae.images.views import shown_view
from ldm_ae.models import Autoencoder
from ldm_ae.outliers.auroc import auroc
from ldm_ae.outliers.found import Outliers, Shown
from ldm_ae.outliers.scores import BEST, SCORES, OutlierScore
from ldm_ae.outliers.sets import ImageSet, Loading, Measured, Sets, encode, measure
from ldm_ae.priors import SavedPrior


@torch.no_grad()
def find_outliers(
    model: Autoencoder,
    sets: Sets,
    loading: Loading,
    *,
    model_name: str,
    scores: Sequence[str] = (),
    prior: SavedPrior | None = None,
    top: int = 20,
    precision: str = "fp32",
    device: str | torch.device = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Outliers:
    """Score every image and return the strangest ones.

    Args:
        model: A model in float32; it is put in eval mode, on the device and in the precision, and stays there.
        sets: The images.
        loading: How they are loaded.
        model_name: Origin of the model, in words.
        scores: Names of scores, of which the first one ranks the images; by default all that the model has, ranked by
            the first one of `BEST`.
        prior: Prior over this model's codes.
        top: Number of the strangest images to show.
        precision: `auto`, `fp32`, `bf16` or `fp16`, for the model only.
        device: Device to run on; `auto` picks an accelerator if there is one.
        progress: Called with the name of each stage, the number of units done, and their total.

    Raises:
        UserError: No images; an unknown score, or one that is named and that the model does not have; a prior over
            other codes; a reconstruction that is not finite.
    """
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    chosen: dict[str, OutlierScore] = {name: SCORES[name]() for name in scores or SCORES.names()}
    report = progress or (lambda *_: None)
    prepared = prepare(model, name=model_name, prior=prior, precision=precision, device=device)
    setting = Setting(model=prepared.model, device=prepared.device, model_hash=prepared.model_hash, prior=prior)

    skipped: dict[str, str] = {}
    for name, score in list(chosen.items()):
        _or_skip(chosen, skipped, name, lambda score=score: score.prepare(setting))  # type: ignore[misc]
    _require(scores, skipped)
    measured: dict[str, Measured] = {}
    for role in ("images", "reference", "against"):
        part: ImageSet | None = getattr(sets, role)
        if part is None:
            continue

        def done(number: int, role: str = role, total: int = part.count) -> None:
            report(f"scoring {role}", number, total)

        measured[role] = measure(setting, part, loading, chosen, skipped, precision=prepared.precision, progress=done)
    images = measured["images"]
    is_reference = _own_references(sets, len(images.keys))
    found: dict[str, dict[str, Tensor]] = {role: {} for role in ("images", "reference", "against")}
    for name, score in list(chosen.items()):
        of_reference = (
            measured["reference"].measurements[name] if sets.reference is not None
            else images.measurements[name][is_reference]
        )  # fmt: skip
        if _or_skip(chosen, skipped, name, lambda score=score, rows=of_reference: score.fit(rows)):  # type: ignore[misc]
            found["reference"][name] = score.score(of_reference)
            found["images"][name] = score.score(images.measurements[name])
            if sets.against is not None:
                found["against"][name] = score.score(measured["against"].measurements[name])
    _require(scores, skipped)
    areas = {}
    if sets.against is not None:
        kept = ~is_reference if sets.reference is None else torch.ones_like(is_reference)
        if not bool(kept.any()):
            raise UserError(f"AUROC needs at least 2 images of {sets.images.name}; one of them is the reference")
        areas = {name: auroc(found["images"][name][kept], values) for name, values in found["against"].items()}
    ranking = scores[0] if scores else next(name for name in (*BEST, *chosen) if name in chosen)
    order = found["images"][ranking].argsort(descending=True, stable=True).tolist()
    shown = _shown(setting, sets.images, loading, images, order[:top], prepared.precision)
    height, width = shown[0].original.shape[-2:]
    protocol: dict[str, object] = {
        "model": prepared.description,
        **{
            role: {"source": part.name, "count": len(measured[role].keys), "rejected": measured[role].rejected}
            for role, part in (("images", sets.images), ("reference", sets.reference), ("against", sets.against))
            if part is not None
        },
        "reference_images": _describe_reference(sets),
        "size": f"{height}x{width}",
        "transform": dict(loading.transform.describe()),
        **prepared.conditions,
    }  # fmt: skip
    return Outliers(
        keys=images.keys, scores=found["images"], reference_scores=found["reference"],
        against_keys=measured["against"].keys if sets.against is not None else [], against_scores=found["against"],
        kinds=chosen, ranking=ranking, order=order, skipped=skipped, auroc=areas, shown=shown, protocol=protocol,
    )  # fmt: skip


def _or_skip(chosen: dict[str, OutlierScore], skipped: dict[str, str], name: str, action: Callable[[], None]) -> bool:
    """Run a step of a score; move the score to `skipped` and return False if it cannot be computed."""
    try:
        action()
    except CannotScoreError as error:
        skipped[name] = str(error)
        del chosen[name]
        return False
    return True


def _require(scores: Sequence[str], skipped: dict[str, str]) -> None:
    """Raise UserError if a score that the user named is skipped."""
    for name in scores:
        if name in skipped:
            raise UserError(f"{name} cannot be computed: {skipped[name]}. Choose other scores")


def _own_references(sets: Sets, count: int) -> Tensor:
    """Return which of the images are the reference, (N,) bool."""
    found = torch.zeros(count, dtype=torch.bool)
    if sets.reference is None:
        found[:: 1 if sets.against is None else 2] = True
    return found


def _describe_reference(sets: Sets) -> str:
    if sets.reference is not None:
        return sets.reference.name
    return f"every second image of {sets.images.name}" if sets.against is not None else sets.images.name


def _shown(
    setting: Setting, images: ImageSet, loading: Loading, measured: Measured, rows: list[int], precision: str
) -> list[Shown]:
    """Return the originals and the reconstructions of images, which are loaded again."""
    view = shown_view(setting.pixels)
    found: list[Shown] = []
    for batch in loading.loader(images, [measured.indices[row] for row in rows]):
        encoded = encode(setting, batch.pixel_values, batch.indices, batch.keys, precision)
        pair = (encoded.pixel_values, encoded.reconstructions)
        originals, decoded = (to_uint8(part if view is None else view.single(part)).cpu() for part in pair)
        for original, reconstruction in zip(originals, decoded, strict=True):
            found.append(Shown(rows[len(found)], original, reconstruction))
    return found
