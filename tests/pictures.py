"""Pictures made from a seed, so that no test needs data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def smooth_picture(seed: int, width: int, height: int) -> Image.Image:
    """An RGB picture of smooth colour gradients and a few shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_class_folders(root: Path) -> Path:
    """Twelve PNG pictures in two class folders, sizes from 40 to 62 pixels."""
    for i in range(12):
        folder = root / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        smooth_picture(i, 40 + 2 * i, 62 - i).save(folder / f"{i:03d}.png")
    return root
