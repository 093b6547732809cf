"""Pictures made from a seed, so that no test needs data."""

from __future__ import annotations

import numpy as np
from PIL import Image


def smooth_picture(seed: int, width: int, height: int) -> Image.Image:
    """An RGB picture of smooth colour gradients and a few shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)
