"""What cropping and resizing did to the images of a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Of the good images whose original size is known."""

    mean_share: float
    """Of an image's area that was cut off, mean over the images."""
    enlarged: int
    """Images that were smaller than their bucket, and so resized to more pixels than they have."""


def describe_crops(rows: pa.Table) -> Crops:
    """From the index rows of good images."""
    rows = rows.filter(pc.and_(pc.is_valid(rows["width"]), pc.is_valid(rows["crop"])))
    if len(rows) == 0:
        return Crops(mean_share=0.0, enlarged=0)
    crop = rows["crop"].combine_chunks().flatten().to_numpy().reshape(-1, 4).astype(np.int64)
    width, height = crop[:, 2] - crop[:, 0], crop[:, 3] - crop[:, 1]
    area = rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy()
    buckets = rows["bucket"].combine_chunks().dictionary_encode()
    sizes = np.array([[int(side) for side in name.split("x")] for name in buckets.dictionary.to_pylist()])
    wanted = sizes[buckets.indices.to_numpy()]
    return Crops(
        mean_share=float(np.mean(1 - width * height / area)),
        enlarged=int(np.sum(width < wanted[:, 1])),  # both sides are scaled alike
    )
