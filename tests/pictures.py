"""Images generated from a seed, so that no test needs data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def smooth_picture(seed: int, width: int, height: int) -> Image.Image:
    """Return an RGB image of smooth colour gradients, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_class_folders(root: Path) -> Path:
    """Write twelve PNG images into two class folders, with sides from 40 to 62 pixels; return the folder."""
    for i in range(12):
        folder = root / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        smooth_picture(i, 40 + 2 * i, 62 - i).save(folder / f"{i:03d}.png")
    return root
