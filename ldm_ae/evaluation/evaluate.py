"""Scores of an autoencoder over a set of images, with the protocol that they hold for."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import inference_numerics
from ldm_ae.evaluation.activation_ranges import ActivationRanges, activation_ranges, first_batches
from ldm_ae.evaluation.latent_summary import ChannelSummary, LatentSummary
from ldm_ae.evaluation.metrics.codebook import CodebookSummary, CodebookUsage
from ldm_ae.evaluation.metrics.features import FeatureNetwork, frechet_score_name
from ldm_ae.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from ldm_ae.evaluation.metrics.image_quality import PerceptualDistance, bicubic_thumbnail, image_scores
from ldm_ae.evaluation.metrics.rate import Rates, thumbnail_numbers
from ldm_ae.evaluation.skipped import usable
from ldm_ae.images.uint8 import to_uint8
from ldm_ae.models import (
    Autoencoder,
    Posterior,
    for_inference,
    fp32_fallbacks,
    require_finite,
    weights_sha256,
)
from ldm_ae.models.wrappers.overflow import WIDE_PRECISION
from ldm_ae.priors import SavedPrior

RECONSTRUCTION = (
    "decoded from the posterior's mode; clamped to [-1, 1] and rounded to 8 bits, as the originals are, before "
    "anything is measured"
)
BASELINE = "bicubic thumbnail with about as many numbers as the latents, enlarged again"
BASELINE_OF_CODES = "bicubic thumbnail with about as many bytes as the codes have at a fixed length, enlarged again"
RATE_OF_CODES = (
    "bits_per_pixel: log2(K) for every code; entropy_bits_per_pixel: entropy of the codes' frequencies over all "
    "images, as an ideal code without context would spend; prior_bits_per_pixel: -log2 of the codes' probability under "
    "the prior, no class told, as an entropy coder spends with it"
)


class ImageBatch(Protocol):
    """What is needed of a loader's batch."""

    @property
    def pixel_values(self) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]."""

    @property
    def keys(self) -> list[str]:
        """B names."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One row of the per-image table."""

    key: str
    scores: dict[str, float]
    """`psnr`, `ssim`, the perceptual distance under its name, `kl_bits_per_pixel` of a Gaussian posterior or
    `bits_per_pixel` of codes at a fixed length and `prior_bits_per_pixel` under a prior, and `bicubic_psnr`."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to look at, beside what became of it. Levels are (3, H, W) uint8."""

    row: ImageScores
    original: Tensor
    reconstruction: Tensor
    thumbnail: Tensor
    """The bicubic baseline."""
    latents: Tensor
    """(C, h, w) float32, the posterior's mode."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that `evaluate` finds out. `scores` and `protocol` are JSON values."""

    scores: dict[str, float]
    images: list[ImageScores]
    channels: list[ChannelSummary]
    protocol: dict[str, object]
    first: list[Picture]
    worst: list[Picture]
    """By PSNR, the worst first."""
    best: list[Picture]
    """By PSNR, the best first."""
    activations: ActivationRanges
    """In float32, over the first images."""
    codebook: CodebookSummary | None
    """Of a discrete model whose codes can be counted."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why scores are missing that were asked for, by their names."""


def validate(
    model: Autoencoder,
    loader: Iterable[ImageBatch],
    perceptual: PerceptualDistance | None = None,
    *,
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Mean scores of a model in training on held-out images, by the same arithmetic as `evaluate`.

    Args:
        model: On its device, in any mode; every module is left in the mode that it was found in.
        loader: Batches of held-out images.
        perceptual: On the model's device.
        autocast_dtype: Run the model under autocast to this dtype; None runs it in its own.

    Returns:
        `psnr`, `ssim` and the perceptual distance under its name; not finite where the model's output is not.

    Raises:
        UserError: the loader has no images.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in model.modules()}
    totals: dict[str, float] = {}
    count = 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in loader:
                pixel_values = batch.pixel_values.to(device, non_blocking=True)
                with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                    _, _, reconstructions = _reconstruct(model, pixel_values)
                for name, values in image_scores(reconstructions, pixel_values, perceptual).items():
                    totals[name] = totals.get(name, 0.0) + float(values.double().sum())
                count += len(pixel_values)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if count == 0:
        raise UserError("there are no held-out images to validate on")
    return {name: total / count for name, total in totals.items()}


def evaluate(
    model: Autoencoder,
    loader: Iterable[ImageBatch],
    *,
    source: str,
    transform_description: Mapping[str, object],
    model_name: str,
    perceptual: PerceptualDistance | None = None,
    features: FeatureNetwork | None = None,
    prior: SavedPrior | None = None,
    precision: str = "fp32",
    device: str | torch.device = "auto",
    seed: int = 0,
    pictures: int = 6,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Reconstruct every image from its posterior's mode and measure. Memory does not grow with the number of images,
    the table of scores apart. A score that these images do not allow, such as a Fréchet distance of one image, is
    skipped; the protocol says why.

    Args:
        model: In float32; put in eval mode, on the device and in the precision, and left there
            (`models.for_inference`).
        loader: Batches; its `rejected` (key -> reason), if it has one, goes into the protocol.
        source: Where the images come from, in words.
        transform_description: What was done to the images, JSON values.
        model_name: Where the model comes from, in words.
        perceptual: Feature network of the perceptual distance; moved to the device if it is a module.
        features: Feature network of the Fréchet distance; likewise.
        prior: Over this model's codes, for their rate; in float32 whatever the precision.
        precision: `auto`, `fp32`, `bf16` or `fp16`, of the model alone. A batch that overflows in fp16 is computed
            again in fp32; the protocol counts these.
        device: Where to run; `auto` picks an accelerator if there is one.
        seed: Of the posterior samples that the latent statistics are taken over.
        pictures: How many images to keep of the first, of the worst and of the best.
        progress: Called after every batch with the number of images done.

    Raises:
        UserError: no images; a reconstruction that is not finite; a prior over other codes.
    """
    device = pick_device(device) if isinstance(device, str) else device
    numerics = inference_numerics(precision, device)
    first, batches = first_batches(loader)
    if not first:
        raise UserError(f"there are no images to evaluate in {source}")
    perceptual, features, skipped = usable(perceptual, features, first[0].pixel_values.shape)
    model = for_inference(model, device=device)
    kind, sha256 = type(model).__name__, weights_sha256(model)  # before the precision changes the weights
    rates = Rates(model, prior, device)
    activations = activation_ranges(model, first)
    model = for_inference(model, device=device, precision=numerics.precision)
    for network in (perceptual, features):
        if isinstance(network, nn.Module):
            network.to(device)
    collected = _Collected(model, features, seed=seed, pictures=pictures)
    with torch.no_grad():
        for batch in batches:
            pixel_values = batch.pixel_values.to(device, non_blocking=True)
            posterior, latents, reconstructions = _reconstruct(model, pixel_values)
            require_finite(reconstructions, batch.keys, numerics.precision)
            thumbnails = collected.baseline(pixel_values, thumbnail_numbers(posterior, latents))
            scores = image_scores(reconstructions, pixel_values, perceptual)
            scores |= rates.of(posterior, pixel_values[0, 0].numel())
            baseline = image_scores(thumbnails, pixel_values, perceptual)
            scores |= {f"bicubic_{name}": values for name, values in baseline.items()}
            collected.add(batch.keys, scores, posterior, latents, pixel_values, reconstructions, thumbnails)
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
        "precision": numerics.precision,
        "memory_layout": numerics.layout,
        "redone_batches": {"count": redone, "precision": WIDE_PRECISION if redone else None},
        "device": numerics.machine,
        "latent_statistics": f"of one posterior sample per image, seed {seed}",
        "codebook": collected.describe_codes(rates.describe()),
        "baseline": {"method": collected.baseline_method(), "thumbnail_size": _sizes(collected.thumbnail_sizes)},
        "frechet_features": None
        if features is None
        else {"network": features.name, "dim": features.dim, "preprocessing": features.preprocessing},
        "skipped": skipped,
        "git_commit": git_commit(),
        "versions": package_versions(),
    }
    return collected.evaluation(protocol, activations, skipped)


@dataclass
class _Collected:
    """What is kept while images pass by."""

    model: Autoencoder
    features: FeatureNetwork | None
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
        # Heaps whose smallest entry is the next to go; the position breaks ties, the earlier image stays.
        self.worst: list[tuple[float, int, Picture]] = []
        self.best: list[tuple[float, int, Picture]] = []
        if self.features is not None:
            names = ("original", "reconstruction", "thumbnail")
            self.statistics = {name: FeatureStatistics(self.features.dim) for name in names}

    def baseline(self, pixel_values: Tensor, numbers: int) -> Tensor:
        thumbnails, size = bicubic_thumbnail(pixel_values, numbers)
        height, width = pixel_values.shape[-2:]
        self.sizes.add((height, width))
        self.thumbnail_sizes.add(size)
        return thumbnails

    def add(
        self,
        keys: list[str],
        scores: dict[str, Tensor],
        posterior: Posterior,
        latents: Tensor,
        pixel_values: Tensor,
        reconstructions: Tensor,
        thumbnails: Tensor,
    ) -> None:
        """One batch; every tensor is (B, ...)."""
        self.latents.update(posterior, latents.shape)
        if self.codes is not None and posterior.indices is not None:
            self.codes.update(posterior.indices, pixel_values[0, 0].numel())
        if self.features is not None:
            self.statistics["original"].update(self.features(pixel_values))
            self.statistics["reconstruction"].update(self.features(reconstructions))
            self.statistics["thumbnail"].update(self.features(thumbnails))
        columns = {name: values.tolist() for name, values in scores.items()}
        for i, key in enumerate(keys):
            row = ImageScores(key=key, scores={name: values[i] for name, values in columns.items()})
            self.images.append(row)
            self._offer(row, i, latents, (pixel_values, reconstructions, thumbnails))

    def _offer(self, row: ImageScores, i: int, latents: Tensor, images: tuple[Tensor, Tensor, Tensor]) -> None:
        if self.pictures == 0:
            return
        position, value = len(self.images), row.scores["psnr"]
        candidates = [(self.worst, -value), (self.best, value)]
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

    def evaluation(
        self, protocol: dict[str, object], activations: ActivationRanges, skipped: dict[str, str]
    ) -> Evaluation:
        """What was collected; scores that too few images allow are added to `skipped`, which the protocol has."""
        names = self.images[0].scores
        scores = {name: sum(row.scores[name] for row in self.images) / len(self.images) for name in names}
        channels = self.latents.channels()
        if self.features is not None:
            name = frechet_score_name(self.features)
            original = self.statistics["original"]
            if original.count < 2:
                skipped[name] = f"a Fréchet distance needs at least 2 images, there is {original.count}"
            else:
                scores[name] = frechet_distance(original, self.statistics["reconstruction"])
                scores[f"bicubic_{name}"] = frechet_distance(original, self.statistics["thumbnail"])
        if all(channel.active is not None for channel in channels):
            scores["active_latent_channels"] = sum(bool(channel.active) for channel in channels)
        codebook = None if self.codes is None else self.codes.summary()
        if codebook is not None:
            scores |= codebook.scores()
        scores["latent_mean"] = self.latents.statistics.pooled_mean
        scores["latent_std"] = self.latents.statistics.pooled_std
        if (factor := self.latents.statistics.scaling_factor) is not None:
            scores["scaling_factor"] = factor
        scores["count"] = len(self.images)
        return Evaluation(
            scores=scores,
            images=self.images,
            channels=channels,
            protocol=protocol,
            first=self.first,
            worst=[picture for _, _, picture in sorted(self.worst, key=lambda entry: entry[:2], reverse=True)],
            best=[picture for _, _, picture in sorted(self.best, key=lambda entry: entry[:2], reverse=True)],
            activations=activations,
            codebook=codebook,
            skipped=skipped,
        )


def _reconstruct(model: Autoencoder, pixel_values: Tensor) -> tuple[Posterior, Tensor, Tensor]:
    posterior = model.encode(pixel_values)
    latents = posterior.mode()
    return posterior, latents, model.decode(latents)


def _sizes(sizes: set[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
