"""Comparison of models: each is evaluated in turn on the same images, and its result is kept in a folder."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ldm_ae.comparison.codecs import measure_codecs
from ldm_ae.comparison.common_size import CommonSize, Sizes, common_size
from ldm_ae.comparison.comparison import Comparison
from ldm_ae.comparison.curves import run_of, validation_curves
from ldm_ae.comparison.diffusion import DiffusionPlan, diffusion_runner
from ldm_ae.comparison.folder import DIFFUSION, IMAGES, MODELS, claim
from ldm_ae.comparison.images import SharedImages
from ldm_ae.comparison.result import ModelResult
from ldm_ae.comparison.stored import find_result, read_result, result_folder, write_result
from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import inference_numerics
from ldm_ae.data import EvaluationLoader, Source
from ldm_ae.evaluation import Metric, evaluate
from ldm_ae.evaluation.codecs import CODECS
from ldm_ae.evaluation.metric_sets import COMPARE, named_metrics
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views import View, shown_view
from ldm_ae.models import Autoencoder, model_hash
from ldm_ae.models.scaling import SCALE
from ldm_ae.models.wrappers.tiling import tiling_of
from ldm_ae.version import __version__

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the number of units done and their total."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A model to compare."""

    name: str
    model: str
    """The model as the user wrote it."""
    open: Callable[[], Autoencoder]
    """Return the model in float32."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is measured, on which images, and how."""

    size: int | Literal["native"] | None = None
    """Side of the central square crop, or `native`; None for the smallest size that a model was trained at."""
    limit: int | None = None
    """Number of images; None for all."""
    metrics: Sequence[str] = (COMPARE,)
    """Names of metrics."""
    networks: Mapping[str, str | None] = field(default_factory=dict)
    """Further arguments of `named_metrics`: the networks of the metrics."""
    transform: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the images' transform, such as `crop`."""
    precision: str = "fp32"
    device: str | torch.device = "auto"
    batch_size: int = 8
    workers: int = 0
    max_bad_fraction: float = 0.01
    pictures: int = 6
    """Images to show."""
    codecs: Sequence[str] = ()
    """Image codecs to measure beside the models."""
    diffusion: DiffusionPlan | None = None
    view: View | None = None
    """How networks that know RGB only see other images; None for the default of the images."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is {self.limit}; it must be at least 1")
        if self.pictures < 1:
            raise UserError(f"pictures is {self.pictures}; it must be at least 1")
        if self.batch_size < 1 or self.workers < 0:
            raise UserError(
                f"the batch size must be at least 1 and workers at least 0; got {self.batch_size} and {self.workers}"
            )
        if unknown := [name for name in self.codecs if name not in CODECS]:
            raise UserError(f"{unknown[0]} is not a codec; give {', '.join(CODECS)}")


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    contestant: Contestant
    sizes: Sizes
    identity: dict[str, Any]
    """What the scores depend on, as JSON values; models that differ by their scale alone have one hash."""


def compare(
    contestants: Sequence[Contestant],
    source: Source,
    folder: Path,
    config: CompareConfig,
    *,
    source_name: str,
    progress: Progress | None = None,
) -> Comparison:
    """Evaluate each model in turn on the same images. The memory does not grow with the number of models.

    Each result is written to FOLDER/models/ as soon as it is there, so that after any interruption the same call
    resumes, and another model can be added. A model that fails is listed with its reason; the others are compared.

    Args:
        contestants: The models; each is opened twice, first for its size and hash.
        source: The images.
        folder: Folder of the results, see `comparison_folder`.
        config: What to measure.
        source_name: Origin of the images, in words.
        progress: Receives each stage of the work.

    Raises:
        UserError: No model can be compared, there are no images, or the folder holds a comparison under another
            protocol.
        RunError: The disk is full.
    """
    metrics = named_metrics(config.metrics, **config.networks)
    failed: dict[str, str] = {}
    entrants = _enter(contestants, failed, progress)
    if not entrants:
        raise UserError(_nothing(failed))
    pixels = entrants[0].sizes.pixels
    size = common_size([entrant.sizes for entrant in entrants], config.size, **config.transform)
    total = min(config.limit or len(source), len(source))
    diffusion = None if config.diffusion is None else diffusion_runner(
        config.diffusion, source, total, size.transform, folder / DIFFUSION, source_name=source_name,
        device=config.device, model_precision=config.precision, model_batch_size=config.batch_size,
        workers=config.workers,
    )  # fmt: skip
    loader = EvaluationLoader(
        source, size.transform, batch_size=config.batch_size, workers=config.workers,
        max_bad_fraction=config.max_bad_fraction, indices=range(total),
    )  # fmt: skip
    images = SharedImages(
        loader, folder / IMAGES, pictures=config.pictures, shown=shown_view(pixels, config.view),
        progress=_stage(progress, "decoding images", total),
    )  # fmt: skip
    del loader
    try:
        protocol = _protocol(images, size, metrics, config, source_name, pixels)
        claim(folder, protocol)
        results = []
        for entrant in entrants:
            name = entrant.contestant.name
            try:
                result = _result(entrant, images, folder, metrics, protocol, config, source_name, progress)
                if diffusion is not None:
                    _free()
                    result = diffusion.run(result, entrant.contestant.open(), progress)
                results.append(_with_curves(result))
            except (UserError, torch.OutOfMemoryError) as error:
                failed[name] = _reason(error)
            _free()
        if not results:
            raise UserError(_nothing(failed))
        codecs = measure_codecs(config.codecs, images, results, metrics, protocol, folder, progress, pixels)
    finally:
        images.close()
    return Comparison(models=results, failed=failed, codecs=codecs, originals=images.first, protocol=protocol)


def _enter(contestants: Sequence[Contestant], failed: dict[str, str], progress: Progress | None) -> list[_Entrant]:
    """Return the models that open, with what is needed before any is evaluated."""
    entrants = []
    for number, contestant in enumerate(contestants):
        try:
            model = contestant.open()
            sizes = Sizes(spec=model.latent_spec, trained=model.sample_size, pixels=model.pixel_spec)
            entrants.append(_Entrant(contestant=contestant, sizes=sizes, identity=_identity(model)))
            _require_same_images(entrants)
            del model
        except UserError as error:
            failed[contestant.name] = _reason(error)
        _free()
        if progress is not None:
            progress("opening models", number + 1, len(contestants))
    return entrants


def _require_same_images(entrants: list[_Entrant]) -> None:
    """Raise UserError, and remove the last model, if its images are not those of the first."""
    first, last = entrants[0], entrants[-1]
    if first.sizes.pixels != last.sizes.pixels:
        entrants.pop()
        raise UserError(
            f"it is for images that are {last.sizes.pixels}, and {first.contestant.name} for {first.sizes.pixels}; "
            "compare models of the same images"
        )


def _identity(model: Autoencoder) -> dict[str, Any]:
    tiling = tiling_of(model)
    scale = {name: getattr(model.latent_spec, name) for name in SCALE}
    return {
        "hash": model_hash(model),
        "scale": {name: list(value) if isinstance(value, tuple) else value for name, value in scale.items()},
        "tiling": None if tiling is None else tiling.describe(),
    }


def _result(
    entrant: _Entrant, images: SharedImages, folder: Path, metrics: list[Metric], protocol: dict[str, Any],
    config: CompareConfig, source_name: str, progress: Progress | None,
) -> ModelResult:  # fmt: skip
    """Return the stored result of a model, or evaluate it."""
    name, shown = entrant.contestant.name, entrant.contestant.model
    key = {"model": entrant.identity, "protocol": protocol}
    found = find_result(folder / MODELS, name, key)
    if found is None:
        evaluation = evaluate(
            entrant.contestant.open(), images, source=source_name,
            transform_description=protocol["images"]["transform"], model_name=shown, metrics=metrics,
            precision=config.precision, device=config.device, pictures=config.pictures, view=config.view,
            progress=_stage(progress, f"evaluating {name}", images.count),
            score_progress=None if progress is None else partial(progress, f"computing scores of {name}"),
        )  # fmt: skip
        found = result_folder(folder / MODELS, name, key)
        write_result(found, evaluation, key)
    return read_result(found, name=name, model=shown)


def _with_curves(result: ModelResult) -> ModelResult:
    run = run_of(result.model)
    return result if run is None else replace(result, curves=validation_curves(run))


def _protocol(
    images: SharedImages, size: CommonSize, metrics: Sequence[Metric], config: CompareConfig, source_name: str,
    pixels: PixelSpec,
) -> dict[str, Any]:  # fmt: skip
    """Return what all results must have in common, as JSON values."""
    device = config.device if isinstance(config.device, torch.device) else pick_device(config.device)
    return {
        "images": {
            "source": source_name, "count": images.count, "sha256": images.sha256,
            "transform": size.transform.describe(), "size": size.reason, "multiple": size.multiple,
        },
        "metrics": [metric.name for metric in metrics],
        "precision": inference_numerics(config.precision, device).precision,
        "device": device.type,
        "pictures": config.pictures,
        "ldm_ae": __version__,
        **_images_protocol(pixels, config.view),
    }  # fmt: skip


def _images_protocol(pixels: PixelSpec, view: View | None) -> dict[str, str]:
    """Return the protocol's entries on images that are not RGB; none for RGB."""
    if pixels == RGB:
        return {}
    return {"pixels": pixels.words, "view": "default" if view is None else view.words}


def _stage(progress: Progress | None, text: str, total: int) -> Callable[[int], None] | None:
    """Return the progress of a stage, which is shown from here on."""
    if progress is None:
        return None
    progress(text, 0, total)
    return lambda done: progress(text, done, total)


def _reason(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "the accelerator's memory is too small; give a smaller --batch-size or --size"
    return str(error)


def _nothing(failed: Mapping[str, str]) -> str:
    return "no model can be compared\n" + "; ".join(f"{name}: {reason}" for name, reason in failed.items())


def _free() -> None:
    """Return the memory of the last model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
