"""The result of a search for outliers, and its files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.report.summary import for_terminal
from ldm_ae.io.files import make_folder, write_json, writing
from ldm_ae.outliers.scores import OutlierScore

PAGE, TABLE, VALUES = "outliers.html", "outliers.csv", "outliers.json"
OUTLIER_FILES = (PAGE, TABLE, VALUES)
"""The files that `Outliers.write` writes."""
_LONGEST_KEY = 60


class Shown(NamedTuple):
    """A strange image."""

    row: int
    """Its place among the keys."""
    original: Tensor
    """(3, H, W) uint8."""
    reconstruction: Tensor
    """(3, H, W) uint8."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Outliers:
    """Scores of N images and of the sets that they are compared with. Higher is stranger, for every score."""

    keys: list[str]
    """Names of the images, in the order of their source."""
    scores: dict[str, Tensor]
    """Scores (N,) float64 by name."""
    reference_scores: dict[str, Tensor]
    """Scores of the reference images, which may be the images themselves."""
    against_keys: list[str]
    """Names of the strange images that are given for comparison; may be empty."""
    against_scores: dict[str, Tensor]
    """Their scores by name."""
    kinds: Mapping[str, OutlierScore]
    """Labels, units and explanations of the scores."""
    ranking: str
    """Name of the score by which images are ranked."""
    order: list[int]
    """Places among the keys, the strangest image first."""
    skipped: dict[str, str]
    """Reasons why other scores are missing, by name."""
    auroc: dict[str, float]
    """AUROC by the name of the score, with the images as normal and the others as strange; empty without others."""
    shown: Sequence[Shown]
    """The strangest images, the strangest first."""
    protocol: dict[str, Any]
    """The conditions of the search, as JSON values."""
    page: Path | None = None
    """The written outliers.html, if a folder was given."""

    def percentiles(self, name: str) -> Tensor:
        """Return the percentage of the reference images that a score calls less strange, (N,), for each image."""
        reference = self.reference_scores[name].sort().values
        return 100.0 * torch.searchsorted(reference, self.scores[name].contiguous()) / len(reference)

    @property
    def values(self) -> dict[str, Any]:
        """The content of outliers.json."""
        return {
            "ranking": self.ranking,
            "scores": {
                name: {"label": kind.label, "unit": kind.unit, "explanation": kind.explanation}
                for name, kind in self.kinds.items()
            },
            "skipped": self.skipped,
            "auroc": self.auroc,
            "strangest": [self.keys[shown.row] for shown in self.shown],
            "protocol": self.protocol,
        }

    def lines(self) -> list[str]:
        """Return the strangest images as a table for a terminal, then the AUROC and the missing scores."""
        kind, values, percentiles = self.kinds[self.ranking], self.scores[self.ranking], self.percentiles(self.ranking)
        lines = [
            f"the {len(self.shown)} strangest of {len(self.keys)} images by {self.ranking} ({kind.title}); "
            f"reference: {self.protocol['reference_images']}",
            f"{'rank':>4}  {'score':>10}  {'percentile':>10}  key",
        ]
        for rank, shown in enumerate(self.shown, 1):
            key = self.keys[shown.row]
            short = key if len(key) <= _LONGEST_KEY else f"...{key[3 - _LONGEST_KEY :]}"
            lines.append(f"{rank:4}  {float(values[shown.row]):10.4g}  {float(percentiles[shown.row]):10.1f}  {short}")
        if self.auroc:
            images, against = self.protocol["images"]["source"], self.protocol["against"]["source"]
            lines.append(f"AUROC of {images} (normal) and {against} (strange); 0.5 is chance")
            lines += [f"  {name:14}  {area:.3f}" for name, area in self.auroc.items()]
        lines += [f"{name} is skipped: {why}" for name, why in self.skipped.items()]
        return [for_terminal(line) for line in lines]

    def write(self, folder: str | Path) -> Path:
        """Write outliers.html, outliers.csv and outliers.json into a folder, which is created if necessary.

        Returns:
            The path of the page.

        Raises:
            UserError: The folder cannot be written to.
        """
        from ldm_ae.outliers.page import render  # the page reads this module's class

        folder = make_folder(folder)
        try:
            write_json(folder / VALUES, self.values)
            with writing(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._rows())
            with writing(folder / PAGE) as temporary:
                temporary.write_text(render(self), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the page to {folder}: {error.strerror}") from error
        return folder / PAGE

    def _rows(self) -> list[list[object]]:
        """Return the table: every image, the strangest first, then the strange images that are given."""
        names = list(self.kinds)
        percentiles = self.percentiles(self.ranking)
        rows: list[list[object]] = [["set", "rank", "key", *names, f"{self.ranking}_percentile"]]
        for rank, row in enumerate(self.order, 1):
            values = [float(self.scores[name][row]) for name in names]
            rows.append(["images", rank, self.keys[row], *values, float(percentiles[row])])
        for row, key in enumerate(self.against_keys):
            rows.append(["against", "", key, *(float(self.against_scores[name][row]) for name in names), ""])
        return rows

    def __repr__(self) -> str:
        return "\n".join(self.lines())
