"""Colour difference CIEDE2000 between each reconstruction and its image, over all pixels and over saturated ones.

`ldm_ae/images/colour_difference.py` has the formula and its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ldm_ae.evaluation.metrics.interface import JSON, MeanMetric, ScoreInfo, Scores
from ldm_ae.images.colour_difference import chroma, ciede2000, srgb_to_lab
from ldm_ae.images.pixels import RGB
from ldm_ae.images.uint8 import from_levels, to_levels
from ldm_ae.models import Posterior

SATURATED_CHROMA = 30.0
"""Chroma C*ab of the original above which a pixel counts as saturated. Skin and dry grass are mostly below it, red
lips, green leaves in the sun and blue skies above it."""
SATURATED = "ciede2000_saturated"


class CIEDE2000(MeanMetric):
    """Mean over the images of their mean over pixels, and the mean over all saturated pixels of all images.

    An image without saturated pixels adds nothing to the second score, which is missing where no image has any.
    """

    name = "ciede2000"
    label = "Colour difference"
    direction = "lower"
    explanation = "CIEDE2000, mean over pixels; about 1 is just noticeable between large patches side by side."
    pixels = RGB
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "ciede2000": ScoreInfo(label=label, direction="lower", explanation=explanation, decimals=2),
        SATURATED: ScoreInfo(
            label="Colour difference, saturated", direction="lower", decimals=2,
            explanation=f"CIEDE2000, mean over the pixels whose original has a chroma C*ab above {SATURATED_CHROMA:g}.",
        ),
    }  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._sum, self._saturated, self._pixels = 0.0, 0, 0

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add a batch; see `Metric.update`."""
        lab, reference = (srgb_to_lab(from_levels(to_levels(images))) for images in (reconstructions, pixel_values))
        difference, saturated = ciede2000(lab, reference), chroma(reference) > SATURATED_CHROMA
        self._sum += float(difference[saturated].double().cpu().sum())
        self._saturated += int(saturated.sum())
        self._pixels += saturated.numel()
        return self.keep({self.name: difference.mean(dim=(1, 2))})

    def compute(self) -> Scores:
        """Return both means."""
        found = dict(super().compute())
        return found | {SATURATED: self._sum / self._saturated} if self._saturated else found

    def details(self) -> Mapping[str, JSON]:
        """Return the fraction of pixels that are saturated."""
        return {"saturated_fraction": round(self._saturated / self._pixels, 6)}
