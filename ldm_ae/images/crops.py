"""Statistics of how images were cropped and resized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Statistics of the good images whose original size is known."""

    mean_fraction: float
    """Fraction of an image's area that was cut off, mean over the images."""
    enlarged: int
    """Number of images smaller than their bucket, which were resized to more pixels than they have."""

    def line(self) -> str:
        """Return one readable line."""
        enlarged = f"; {self.enlarged} images are smaller than their bucket and were enlarged" if self.enlarged else ""
        return f"{self.mean_fraction:.1%} of each image cropped off on average{enlarged}"


def describe_crops(rows: pa.Table) -> Crops:
    """Compute the statistics from the index rows of good images."""
    rows = rows.filter(pc.and_(pc.is_valid(rows["width"]), pc.is_valid(rows["crop"])))
    if len(rows) == 0:
        return Crops(mean_fraction=0.0, enlarged=0)
    crops = rows["crop"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    buckets = rows["bucket"].combine_chunks().dictionary_encode()
    sizes = np.array([[int(side) for side in name.split("x")] for name in buckets.dictionary.to_pylist()])
    originals = np.stack([rows["height"].to_numpy(), rows["width"].to_numpy()], axis=1)
    return measure_crops(crops, originals, sizes[buckets.indices.to_numpy()])


def measure_crops(crops: NDArray[Any], originals: NDArray[Any], sizes: NDArray[Any]) -> Crops:
    """Measure the area that was cut off.

    Args:
        crops: (N, 4) left, top, right, bottom in pixels of the originals.
        originals: (N, 2) height and width.
        sizes: (N, 2) height and width of the results.
    """
    if len(crops) == 0:
        return Crops(mean_fraction=0.0, enlarged=0)
    crops, originals = crops.astype(np.int64), originals.astype(np.int64)
    width, height = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    return Crops(
        mean_fraction=float(np.mean(1 - width * height / originals.prod(axis=1))),
        enlarged=int(np.sum(width < sizes[:, 1])),  # both sides have the same scale
    )
