"""What an evaluation accumulates over the batches of images, beside the scores: pictures, statistics, the table."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ldm_ae.evaluation.activation_ranges import ActivationRanges
from ldm_ae.evaluation.latent_summary import LatentSummary
from ldm_ae.evaluation.metrics.codebook import CodebookUsage
from ldm_ae.evaluation.metrics.rate import RATE_OF_CODES
from ldm_ae.evaluation.result import Evaluation, ImageScores, Picture
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.evaluation.thumbnail import BASELINE, BASELINE_OF_CODES, bicubic_thumbnail
from ldm_ae.evaluation.warnings import model_warnings
from ldm_ae.images.missing import fill, without_missing
from ldm_ae.images.uint8 import to_uint8
from ldm_ae.images.views import View, shown_view
from ldm_ae.models import Autoencoder, Posterior

_NAMED_SIZES = 8
_NO_DATA = -1.0
"""Value of missing data in pictures: black."""


@dataclass
class Collected:
    """Accumulators over the batches of images."""

    model: Autoencoder
    seed: int
    pictures: int
    """Number of pictures of each kind to keep."""
    view: View | None = None
    """The view of the metrics' networks, by which pictures of images that are not RGB are shown too."""
    images: list[ImageScores] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    thumbnail_sizes: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.latents = LatentSummary(self.model.latent_spec.channels, self.seed)
        size, maps = self.model.latent_spec.codebook_size, self.model.latent_spec.codebook_maps
        self.codes = None if size is None else CodebookUsage(size, maps)
        self.first: list[Picture] = []
        self.shown = shown_view(self.model.pixel_spec, self.view)
        # Heaps whose smallest entry is removed next; the position breaks ties in favour of the earlier image.
        self.worst: list[tuple[float, int, Picture]] = []
        self.best: list[tuple[float, int, Picture]] = []

    def baseline(self, pixel_values: Tensor, numbers: int) -> Tensor:
        """Return the thumbnails of a batch, and note the sizes."""
        thumbnails, size = bicubic_thumbnail(self._known(pixel_values), numbers)
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
            images: Originals, reconstructions and thumbnails, (B, C, H, W) each.
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
        original, reconstruction, thumbnail = self._levels([image[i : i + 1] for image in images])
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

    def _levels(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return (3, H, W) uint8 on the CPU of an image and its reconstructions, (1, C, H, W) each."""
        if self.model.pixel_spec.missing is not None:
            images = [fill(image, images[0], _NO_DATA)[0] for image in images]
        if self.shown is not None:
            images = [self.shown.single(image) for image in images]
        return [to_uint8(image[0]).cpu() for image in images]

    def _known(self, images: Tensor) -> Tensor:
        return images if self.model.pixel_spec.missing is None else without_missing(images)

    def describe_images(self, source: str) -> dict[str, object]:
        """Return the protocol's entries on the images."""
        keys = "\n".join(row.key for row in self.images)
        return {
            "source": source,
            "count": len(self.images),
            "keys_sha256": hashlib.sha256(keys.encode()).hexdigest(),
            "size": sizes_in_words(self.sizes),
        }

    def baseline_method(self) -> str:
        """Return how the thumbnails are made, in words."""
        return BASELINE if self.codes is None else BASELINE_OF_CODES

    def describe_codes(self, prior: dict[str, object] | None) -> dict[str, object] | None:
        """Return the protocol's entry on the codes; None without any."""
        if self.codes is None:
            return None
        found = self.codes.summary()
        counted = "none: the codebook is too large" if found is None else found.counted
        return {"size": self.model.latent_spec.codebook_size, "counted": counted, "rate": RATE_OF_CODES, "prior": prior}

    def evaluation(
        self, protocol: dict[str, object], activations: ActivationRanges, scoring: Scoring,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:  # fmt: skip
        """Return the results; add metrics that cannot score these images to `skipped`, which is in the protocol."""
        scores = scoring.compute(progress)
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


def sizes_in_words(sizes: set[tuple[int, int]]) -> str:
    """Return the sizes as width x height; of many, their number and those of the smallest and the largest area."""
    if len(sizes) > _NAMED_SIZES:
        by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        smallest, largest = (f"{width}x{height}" for height, width in (by_area[0], by_area[-1]))
        return f"{len(sizes)} sizes from {smallest} to {largest}"
    return ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
