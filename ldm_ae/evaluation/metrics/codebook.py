"""The codes of a discrete model that a set of images uses, and the codes' cost in bits.

Entropies are those of the codes' frequencies over all images: the rate of an ideal code without context. They cannot
exceed log2 of the number of codes that were counted, so with few images every large codebook looks small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.core.code_maps import split_maps
from ldm_ae.evaluation.metrics.interface import Metric, ScoreInfo, Scores, Setting
from ldm_ae.models import Posterior
from ldm_ae.quantizers.interface import COUNTABLE

EDGES = tuple(2.0**power for power in range(-4, 5))
"""Boundaries of the bins for code frequencies, as multiples of the frequency under uniform use."""


@dataclass(frozen=True, kw_only=True)
class CodebookSummary:
    """Use of the codes. Every number that does not belong to one level is the mean over the levels of a residual
    quantizer. The levels of a hierarchical model are its maps here, the coarsest first."""

    size: int
    """K, the number of codes of one level."""
    levels: int
    """Q, the number of levels or maps; 1 for other models."""
    counted: int
    """Number of codes counted in one level; in the coarsest map of a hierarchical model."""
    entropy_bits_per_pixel: float
    counts: Tensor
    """Number of occurrences of each code, (Q, K) int64."""
    maps: int | None = None
    """`LatentSpec.codebook_maps` of the indices."""

    @property
    def part(self) -> str:
        """The word for a level."""
        return "level" if self.maps is None else "map"

    @property
    def totals(self) -> Tensor:
        """Number of codes counted in each level, (Q,) int64."""
        return self.counts.sum(dim=1)

    @property
    def entropies(self) -> Tensor:
        """Entropy of each level in bits per code, (Q,)."""
        shares = self.counts.double() / self.totals[:, None]
        return torch.special.entr(shares).sum(dim=1) / math.log(2.0)

    @property
    def used(self) -> Tensor:
        """Number of codes that occur, (Q,) int64."""
        return (self.counts > 0).sum(dim=1)

    def bits(self, indices: Tensor) -> Tensor:
        """Return the bits that other images cost with these frequencies and no context, (B,) float64. Each code is
        counted once more than it occurred, so that every cost is finite.

        Args:
            indices: Shaped like `Posterior.indices`, int64 in [0, K).
        """
        levels = _levels(indices.cpu(), self.maps)
        costs = -torch.log2((self.counts.double() + 1.0) / (self.totals[:, None] + self.size))
        found = [cost[chosen].flatten(1).sum(dim=1) for cost, chosen in zip(costs, levels, strict=True)]
        return torch.stack(found).sum(dim=0)

    def scores(self) -> dict[str, float]:
        """Return the numbers that are listed among the scores."""
        return {
            "entropy_bits_per_pixel": self.entropy_bits_per_pixel,
            "codebook_usage": float(self.used.double().mean()) / self.size,
            "codebook_perplexity": float(self.entropies.exp2().mean()),
            "codebook_entropy_bits": float(self.entropies.mean()),
            "codebook_dead_codes": int((self.size - self.used).sum()),
        }

    def histogram(self) -> list[int]:
        """Return the number of codes per bin: never, then below, between and above `EDGES`; levels are added up."""
        relative = self.counts.double() * self.size / self.totals[:, None]
        bins = torch.bucketize(relative, torch.tensor(EDGES, dtype=torch.float64), right=True) + 1
        return torch.where(self.counts > 0, bins, 0).flatten().bincount(minlength=len(EDGES) + 2).tolist()

    def describe(self) -> dict[str, object]:
        """Return the summary as JSON values."""
        return {
            "size": self.size,
            "levels": self.levels,
            "counted": self.counted,
            "fixed_bits": math.log2(self.size),
            "used": self.used.tolist(),
            "entropy_bits": self.entropies.tolist(),
            "perplexity": self.entropies.exp2().tolist(),
            "histogram": {"edges": list(EDGES), "codes": self.histogram()},
        }

    def line(self) -> str:
        """Return a line on the use of the codebook."""
        used = ", ".join(f"{count:,}" for count in self.used.tolist())
        places = [self.counted] if self.maps is None else self.totals.tolist()
        return (
            f"codebook: {used} of {self.size:,} codes in use over {', '.join(f'{n:,}' for n in places)} places, "
            f"{float(self.entropies.mean()):.2f} of {math.log2(self.size):.2f} bits per code"
        )


class CodebookUsage:
    """Counter of codes, updated batch by batch.

    Args:
        size: K. Above `COUNTABLE` nothing is counted: images use a tiny fraction of such a codebook.
        maps: `LatentSpec.codebook_maps` of the indices.
    """

    def __init__(self, size: int, maps: int | None = None):
        self._size = size
        self._maps = maps
        self._counts: Tensor | None = None
        self._counted = self._pixels = 0

    def update(self, indices: Tensor, pixels: int) -> None:
        """Add a batch.

        Args:
            indices: Shaped like `Posterior.indices`, int64 in [0, K).
            pixels: Number of pixels of one image.
        """
        if self._size > COUNTABLE:
            return
        rows = [level.flatten() for level in _levels(indices.cpu(), self._maps)]
        counts = torch.stack([row.bincount(minlength=self._size) for row in rows])
        self._counts = counts if self._counts is None else self._counts + counts
        self._counted += len(rows[0])
        self._pixels += pixels * len(indices)

    def summary(self) -> CodebookSummary | None:
        """Return the summary of the counts; None if nothing was counted."""
        if self._counts is None:
            return None
        found = CodebookSummary(
            size=self._size, levels=len(self._counts), counted=self._counted, entropy_bits_per_pixel=0.0,
            counts=self._counts, maps=self._maps,
        )  # fmt: skip
        bits = float((found.entropies * found.totals).sum())
        return replace(found, entropy_bits_per_pixel=bits / self._pixels)


def _levels(indices: Tensor, maps: int | None) -> list[Tensor]:
    """Return the levels or maps of indices, the coarsest first."""
    if maps is not None:
        return split_maps(indices, maps)
    return list(indices.unbind(dim=1)) if indices.ndim == 4 else [indices]


class Codebook(Metric):
    """Use of a discrete model's codes, from the counts that an evaluation gathers for its report."""

    name = "codebook"
    group = "latents"
    label = "Codebook"
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "entropy_bits_per_pixel": ScoreInfo(
            label="Entropy", unit="bits per pixel",
            explanation="Entropy of the codes' frequencies over all images: the rate of an ideal code without context.",
            group="rate",
        ),
        "codebook_usage": ScoreInfo(
            label="Codes in use", explanation="Fraction of the codebook that occurs; few images cannot use many codes."
        ),
        "codebook_perplexity": ScoreInfo(
            label="Perplexity of the codes",
            explanation="Number of uniformly used codes that would have the same entropy."
        ),
        "codebook_entropy_bits": ScoreInfo(
            label="Entropy", unit="bits per code",
            explanation="Entropy of the codes' frequencies; at most log2 of the codebook's size."
        ),
        "codebook_dead_codes": ScoreInfo(
            label="Codes that never occur",
            explanation="Number of unused codes, over all levels of a residual quantizer and all maps."
        ),
    }  # fmt: skip
    compares_images = False

    def __init__(self) -> None:
        self._codes: CodebookUsage | None = None

    def prepare(self, setting: Setting) -> None:
        """Keep the evaluation's counts."""
        self._codes = setting.codes

    def reset(self) -> None:
        """Do nothing: the evaluation owns the counts."""

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Do nothing: the evaluation counts the codes."""
        return {}

    def compute(self) -> Scores:
        """Return the numbers; none for a model without codes, or with too many codes to count."""
        found = None if self._codes is None else self._codes.summary()
        return {} if found is None else found.scores()
