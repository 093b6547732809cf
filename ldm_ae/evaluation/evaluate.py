"""Scores of an autoencoder over a set of images, with the protocol under which they are valid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import inference_numerics
from ldm_ae.evaluation.activation_ranges import activation_ranges, first_batches
from ldm_ae.evaluation.collected import Collected, sizes_in_words
from ldm_ae.evaluation.metric_sets import default_metrics, validation_metrics
from ldm_ae.evaluation.metrics.features import FeatureNetwork
from ldm_ae.evaluation.metrics.interface import Metric, Setting
from ldm_ae.evaluation.metrics.perceptual import PerceptualDistance
from ldm_ae.evaluation.metrics.rate import describe_prior
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.evaluation.thumbnail import thumbnail_numbers
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.stored import has_8_bits
from ldm_ae.images.views import View
from ldm_ae.models import (
    Autoencoder,
    Posterior,
    for_inference,
    fp32_fallbacks,
    model_hash,
    require_finite,
    unwrapped,
    weights_sha256,
)
from ldm_ae.models.inference import in_eval_mode
from ldm_ae.models.wrappers.overflow import WIDE_PRECISION
from ldm_ae.models.wrappers.tiling import blended, tiling_of
from ldm_ae.priors import SavedPrior

RECONSTRUCTION = (
    "decoded from the posterior's mode; clamped to [-1, 1] and rounded to 8 bits, as the originals are, before "
    "anything is measured"
)


class ImageBatch(Protocol):
    """The part of a loader's batch that is needed here."""

    @property
    def pixel_values(self) -> Tensor:
        """Images, (B, 3, H, W) float32 in [-1, 1]."""

    @property
    def keys(self) -> list[str]:
        """Names of the B images."""


def validate(
    model: Autoencoder,
    loader: Iterable[ImageBatch],
    perceptual: PerceptualDistance | None = None,
    *,
    metrics: Sequence[Metric] | None = None,
    view: View | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Return mean scores of a model in training on held-out images, by the same metrics as `evaluate`.

    Args:
        model: A model on its device, in any mode; the mode of every module is restored.
        loader: Batches of held-out images.
        perceptual: A distance on the model's device, added to PSNR and SSIM.
        metrics: Metrics to compute in place of PSNR, SSIM and the perceptual distance.
        view: As in `evaluate`.
        autocast_dtype: Run the model under autocast to this dtype; None runs it in its own.

    Returns:
        `psnr`, `ssim` and the perceptual distance under its name, or the scores of `metrics`; not finite where the
        model's output is not.

    Raises:
        UserError: the loader has no images, or a metric cannot score them.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    chosen = validation_metrics(perceptual) if metrics is None else metrics
    scoring = Scoring(chosen, Setting(model=model, device=device, view=view), strict=True)
    count = 0
    with in_eval_mode(model), torch.no_grad():
        for batch in loader:
            pixel_values = batch.pixel_values.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                posterior, _, reconstructions = _reconstruct(model, pixel_values)
            scoring.update(reconstructions, pixel_values, posterior, labels=getattr(batch, "labels", None))
            count += len(pixel_values)
        if count == 0:
            raise UserError("validation has no held-out images")
        return scoring.compute()


def evaluate(
    model: Autoencoder,
    loader: Iterable[ImageBatch],
    *,
    source: str,
    transform_description: Mapping[str, object],
    model_name: str,
    metrics: Sequence[Metric] | None = None,
    perceptual: PerceptualDistance | None = None,
    features: FeatureNetwork | None = None,
    prior: SavedPrior | None = None,
    view: View | None = None,
    precision: str = "fp32",
    device: str | torch.device = "auto",
    seed: int = 0,
    pictures: int = 6,
    progress: Callable[[int], None] | None = None,
    score_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Reconstruct every image from its posterior's mode and compute the scores. Except for the table of scores, memory
    use does not grow with the number of images. A score that is undefined for these images, such as a Fréchet distance
    of one image, is skipped; the protocol states why.

    Args:
        model: A model in float32; it is put in eval mode, on the device and in the precision, and stays there
            (`models.for_inference`).
        loader: Batches, perhaps with `labels`; its `rejected` (key -> reason), if it has one, is added to the protocol.
        source: Origin of the images, in words.
        transform_description: The transform applied to the images, as JSON values.
        model_name: Origin of the model, in words.
        metrics: Metrics to compute; None computes the default set.
        perceptual: Feature network of the default set's perceptual distance; moved to the device if it is a module.
        features: Feature network of the default set's Fréchet distance; moved likewise.
        prior: Prior over this model's codes, for their rate; it runs in float32 in every precision.
        view: How networks that know RGB only see other images; None takes the default of the model's images.
        precision: `auto`, `fp32`, `bf16` or `fp16`, for the model only. A batch that overflows in fp16 is computed
            again in fp32; the protocol counts these batches.
        device: Device to run on; `auto` picks an accelerator if there is one.
        seed: Seed of the posterior samples for the latent statistics.
        pictures: Number of images to keep of the first, of the worst and of the best.
        progress: Called after every batch with the number of images done.
        score_progress: Called after that before each score is computed, with the number of scores done and their total;
            some scores reconstruct images of their own.

    Raises:
        UserError: no images; a reconstruction that is not finite; a prior over other codes.
    """
    assert metrics is None or (perceptual is None and features is None), "networks are for the default metrics"
    device = pick_device(device) if isinstance(device, str) else device
    numerics = inference_numerics(precision, device)
    first, batches = first_batches(loader)
    if not first:
        raise UserError(f"no images to evaluate in {source}")
    model = for_inference(model, device=device)
    inside = unwrapped(model)
    # Before the precision changes the weights:
    kind, sha256, owner = type(inside).__name__, weights_sha256(inside), None if prior is None else model_hash(model)
    activations = activation_ranges(blended(model), first)
    tiling = tiling_of(model)
    model = for_inference(model, device=device, precision=numerics.precision)
    collected = Collected(model, seed=seed, pictures=pictures, view=view)
    setting = Setting(
        model=model, device=device, model_hash=owner, prior=prior, latents=collected.latents, codes=collected.codes,
        view=view,
    )  # fmt: skip
    scoring = Scoring(default_metrics(perceptual, features) if metrics is None else metrics, setting)
    scoring.require(first[0].pixel_values.shape)
    with torch.no_grad():
        for batch in batches:
            pixel_values = batch.pixel_values.to(device, non_blocking=True)
            posterior, latents, reconstructions = _reconstruct(model, pixel_values)
            require_finite(reconstructions, batch.keys, numerics.precision)
            thumbnails = collected.baseline(pixel_values, thumbnail_numbers(posterior, latents))
            labels = getattr(batch, "labels", None)
            scores = scoring.update(reconstructions, pixel_values, posterior, thumbnails, labels)
            collected.count(posterior, latents, pixel_values)
            collected.add(
                batch.keys, scores, scoring.rank(scores), latents, (pixel_values, reconstructions, thumbnails)
            )
            if progress is not None:
                progress(len(collected.images))
    rejected = dict(getattr(loader, "rejected", {}))
    redone = fp32_fallbacks(model)
    protocol: dict[str, object] = {
        "images": collected.describe_images(source) | {"transform": dict(transform_description), "rejected": rejected},
        "model": {
            "name": model_name,
            "class": kind,
            "sha256": sha256,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "downsample_factor": model.latent_spec.downsample_factor,
            "latent_channels": model.latent_spec.channels,
        },
        "reconstruction": _reconstruction(model.pixel_spec),
        **_views(model.pixel_spec, scoring, collected),
        **({} if tiling is None else {"tiling": tiling.describe()}),
        "precision": numerics.precision,
        "memory_layout": numerics.layout,
        "redone_batches": {"count": redone, "precision": WIDE_PRECISION if redone else None},
        "device": numerics.machine,
        "latent_statistics": f"of one posterior sample per image, seed {seed}",
        "codebook": collected.describe_codes(describe_prior(prior)),
        "baseline": {
            "method": collected.baseline_method(),
            "thumbnail_size": sizes_in_words(collected.thumbnail_sizes),
        },
        **scoring.protocol(),
        "skipped": scoring.skipped,
        "git_commit": git_commit(),
        "versions": package_versions(),
    }
    return collected.evaluation(protocol, activations, scoring, score_progress)


def _reconstruction(pixels: PixelSpec) -> str:
    """Return what is measured, in words."""
    if has_8_bits(pixels):
        return RECONSTRUCTION
    stored = "not rounded" if pixels.bits == 0 else f"rounded to the stored values of {pixels.bits} bits"
    return RECONSTRUCTION.replace("rounded to 8 bits", stored)


def _views(pixels: PixelSpec, scoring: Scoring, collected: Collected) -> dict[str, object]:
    """Return the protocol's entries on images that are not RGB; none for RGB."""
    if pixels == RGB:
        return {}
    shown = {"networks": scoring.view, "pictures": collected.shown}
    return {
        "pixels": pixels.words,
        "view": {name: "RGB" if view is None else view.words for name, view in shown.items()},
    }


def _reconstruct(model: Autoencoder, pixel_values: Tensor) -> tuple[Posterior, Tensor, Tensor]:
    posterior = model.encode(pixel_values)
    latents = posterior.mode()
    return posterior, latents, model.decode(latents)
