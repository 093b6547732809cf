"""Scores of an autoencoder over a set of images, with the protocol under which they are valid."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import inference_numerics
from ldm_ae.evaluation.activation_ranges import ActivationRanges, activation_ranges, first_batches
from ldm_ae.evaluation.latent_summary import ChannelSummary, LatentSummary
from ldm_ae.evaluation.metric_sets import default_metrics, validation_metrics
from ldm_ae.evaluation.metrics.codebook import CodebookSummary, CodebookUsage
from ldm_ae.evaluation.metrics.features import FeatureNetwork
from ldm_ae.evaluation.metrics.interface import JSON, Metric, ScoreInfo, Setting
from ldm_ae.evaluation.metrics.perceptual import PerceptualDistance
from ldm_ae.evaluation.metrics.rate import RATE_OF_CODES, describe_prior
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.evaluation.thumbnail import BASELINE, BASELINE_OF_CODES, bicubic_thumbnail, thumbnail_numbers
from ldm_ae.evaluation.warnings import ModelWarning, model_warnings
from ldm_ae.images.uint8 import to_uint8
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

_NAMED_SIZES = 8


class ImageBatch(Protocol):
    """The part of a loader's batch that is needed here."""

    @property
    def pixel_values(self) -> Tensor:
        """Images, (B, 3, H, W) float32 in [-1, 1]."""

    @property
    def keys(self) -> list[str]:
        """Names of the B images."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One row of the per-image table."""

    key: str
    scores: dict[str, float]
    """Each metric's score of the image, by key, and of its thumbnail, under `bicubic_KEY`."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to show, with its reconstruction and thumbnail. Levels are (3, H, W) uint8."""

    row: ImageScores
    original: Tensor
    reconstruction: Tensor
    thumbnail: Tensor
    """The bicubic baseline."""
    latents: Tensor
    """Mode of the posterior, (C, h, w) float32."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The complete results of `evaluate`. `scores`, `details` and `protocol` are JSON values."""

    scores: dict[str, float]
    images: list[ImageScores]
    channels: list[ChannelSummary]
    protocol: dict[str, object]
    first: list[Picture]
    worst: list[Picture]
    """Images with the worst `ranking` scores, the worst first."""
    best: list[Picture]
    """Images with the best `ranking` scores, the best first."""
    activations: ActivationRanges
    """Activations in float32, over the first images."""
    codebook: CodebookSummary | None
    """Use of the codes of a discrete model; None where codes cannot be counted."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons why requested scores are missing, by the scores' names."""
    infos: dict[str, ScoreInfo] = field(default_factory=dict)
    """Display and explanation of each score, by its key; scores of the thumbnail share those of the model."""
    details: dict[str, dict[str, JSON]] = field(default_factory=dict)
    """Results that are not single numbers, such as a curve, by the metric's name."""
    ranking: str | None = None
    """Key of the score by which `worst` and `best` are chosen: the first score that every image has and that has a
    direction, by default PSNR."""
    warnings: list[ModelWarning] = field(default_factory=list)
    """Faults of the model that the scores do not show."""


def validate(
    model: Autoencoder,
    loader: Iterable[ImageBatch],
    perceptual: PerceptualDistance | None = None,
    *,
    metrics: Sequence[Metric] | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Return mean scores of a model in training on held-out images, by the same metrics as `evaluate`.

    Args:
        model: A model on its device, in any mode; the mode of every module is restored.
        loader: Batches of held-out images.
        perceptual: A distance on the model's device, added to PSNR and SSIM.
        metrics: Metrics to compute in place of PSNR, SSIM and the perceptual distance.
        autocast_dtype: Run the model under autocast to this dtype; None runs it in its own.

    Returns:
        `psnr`, `ssim` and the perceptual distance under its name, or the scores of `metrics`; not finite where the
        model's output is not.

    Raises:
        UserError: the loader has no images, or a metric cannot score them.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    chosen = validation_metrics(perceptual) if metrics is None else metrics
    scoring = Scoring(chosen, Setting(model=model, device=device), strict=True)
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
    precision: str = "fp32",
    device: str | torch.device = "auto",
    seed: int = 0,
    pictures: int = 6,
    progress: Callable[[int], None] | None = None,
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
        precision: `auto`, `fp32`, `bf16` or `fp16`, for the model only. A batch that overflows in fp16 is computed
            again in fp32; the protocol counts these batches.
        device: Device to run on; `auto` picks an accelerator if there is one.
        seed: Seed of the posterior samples for the latent statistics.
        pictures: Number of images to keep of the first, of the worst and of the best.
        progress: Called after every batch with the number of images done.

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
    collected = _Collected(model, seed=seed, pictures=pictures)
    setting = Setting(
        model=model, device=device, model_hash=owner, prior=prior, latents=collected.latents, codes=collected.codes
    )
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
        "reconstruction": RECONSTRUCTION,
        **({} if tiling is None else {"tiling": tiling.describe()}),
        "precision": numerics.precision,
        "memory_layout": numerics.layout,
        "redone_batches": {"count": redone, "precision": WIDE_PRECISION if redone else None},
        "device": numerics.machine,
        "latent_statistics": f"of one posterior sample per image, seed {seed}",
        "codebook": collected.describe_codes(describe_prior(prior)),
        "baseline": {"method": collected.baseline_method(), "thumbnail_size": _sizes(collected.thumbnail_sizes)},
        **scoring.protocol(),
        "skipped": scoring.skipped,
        "git_commit": git_commit(),
        "versions": package_versions(),
    }
    return collected.evaluation(protocol, activations, scoring)


@dataclass
class _Collected:
    """Accumulators over the batches of images."""

    model: Autoencoder
    seed: int
    pictures: int
    images: list[ImageScores] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    thumbnail_sizes: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.latents = LatentSummary(self.model.latent_spec.channels, self.seed)
        size = self.model.latent_spec.codebook_size
        self.codes = None if size is None else CodebookUsage(size)
        self.first: list[Picture] = []
        # Heaps whose smallest entry is removed next; the position breaks ties in favour of the earlier image.
        self.worst: list[tuple[float, int, Picture]] = []
        self.best: list[tuple[float, int, Picture]] = []

    def baseline(self, pixel_values: Tensor, numbers: int) -> Tensor:
        thumbnails, size = bicubic_thumbnail(pixel_values, numbers)
        height, width = pixel_values.shape[-2:]
        self.sizes.add((height, width))
        self.thumbnail_sizes.add(size)
        return thumbnails

    def count(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor) -> None:
        """Add a batch to the statistics of latents and codes."""
        self.latents.update(posterior, latents.shape)
        if self.codes is not None and posterior.indices is not None:
            self.codes.update(posterior.indices, pixel_values[0, 0].numel())

    def add(
        self,
        keys: list[str],
        scores: dict[str, list[float]],
        ranks: list[float] | None,
        latents: Tensor,
        images: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Add a batch to the table of images, and keep the images that rank high or low.

        Args:
            keys: B names.
            scores: B values by key.
            ranks: B values, higher is better; None keeps only the first images.
            latents: (B, C, h, w), the posterior's mode.
            images: Originals, reconstructions and thumbnails, (B, 3, H, W) each.
        """
        for i, key in enumerate(keys):
            row = ImageScores(key=key, scores={name: values[i] for name, values in scores.items()})
            self.images.append(row)
            self._offer(row, i, None if ranks is None else ranks[i], latents, images)

    def _offer(
        self, row: ImageScores, i: int, rank: float | None, latents: Tensor, images: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        if self.pictures == 0:
            return
        position = len(self.images)
        candidates = [] if rank is None else [(self.worst, -rank), (self.best, rank)]
        wanted = [
            (heap, rank) for heap, rank in candidates if len(heap) < self.pictures or (rank, -position) > heap[0][:2]
        ]
        if not wanted and len(self.first) >= self.pictures:
            return
        original, reconstruction, thumbnail = (to_uint8(image[i]).cpu() for image in images)
        picture = Picture(
            row=row,
            original=original,
            reconstruction=reconstruction,
            thumbnail=thumbnail,
            latents=latents[i].float().cpu().clone(),
        )
        if len(self.first) < self.pictures:
            self.first.append(picture)
        for heap, rank in wanted:
            heapq.heappush(heap, (rank, -position, picture))
            if len(heap) > self.pictures:
                heapq.heappop(heap)

    def describe_images(self, source: str) -> dict[str, object]:
        keys = "\n".join(row.key for row in self.images)
        return {
            "source": source,
            "count": len(self.images),
            "keys_sha256": hashlib.sha256(keys.encode()).hexdigest(),
            "size": _sizes(self.sizes),
        }

    def baseline_method(self) -> str:
        return BASELINE if self.codes is None else BASELINE_OF_CODES

    def describe_codes(self, prior: dict[str, object] | None) -> dict[str, object] | None:
        if self.codes is None:
            return None
        found = self.codes.summary()
        counted = "none: the codebook is too large" if found is None else found.counted
        return {"size": self.model.latent_spec.codebook_size, "counted": counted, "rate": RATE_OF_CODES, "prior": prior}

    def evaluation(self, protocol: dict[str, object], activations: ActivationRanges, scoring: Scoring) -> Evaluation:
        """Return the results; add metrics that cannot score these images to `skipped`, which is in the protocol."""
        scores = scoring.compute()
        kept = scoring.keys_of_images()
        for row in self.images:  # a metric may have been skipped after some batches
            for name in row.scores.keys() - kept:
                del row.scores[name]
        return Evaluation(
            warnings=model_warnings(self.model, self.latents.statistics, activations),
            scores=scores,
            images=self.images,
            channels=self.latents.channels(),
            protocol=protocol,
            first=self.first,
            worst=[picture for _, _, picture in sorted(self.worst, key=lambda entry: entry[:2], reverse=True)],
            best=[picture for _, _, picture in sorted(self.best, key=lambda entry: entry[:2], reverse=True)],
            activations=activations,
            codebook=None if self.codes is None else self.codes.summary(),
            skipped=scoring.skipped,
            infos=scoring.infos,
            details=scoring.details,
            ranking=scoring.ranking,
        )


def _reconstruct(model: Autoencoder, pixel_values: Tensor) -> tuple[Posterior, Tensor, Tensor]:
    posterior = model.encode(pixel_values)
    latents = posterior.mode()
    return posterior, latents, model.decode(latents)


def _sizes(sizes: set[tuple[int, int]]) -> str:
    """Return the sizes as width x height; of many, their number and those of the smallest and the largest area."""
    if len(sizes) > _NAMED_SIZES:
        by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        smallest, largest = (f"{width}x{height}" for height, width in (by_area[0], by_area[-1]))
        return f"{len(sizes)} sizes from {smallest} to {largest}"
    return ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
