"""MAR (LTH14/mar, `CachedFolder`).

    OUT/{class:04d}/{i:08d}.npz     moments, moments_flip   (2C, h, w) float32: mean and log-variance, unscaled

The reader takes one of the two at random, numbers the class folders from 0 in their order, and multiplies its samples
by 0.2325.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import ClassFolders, Sample


class MAR(ClassFolders):
    """A folder of moments for each class."""

    name = "mar"
    trainer = "MAR"
    tensors = ("moments", "moments_flip")
    needs_flips = True
    square = True
    constants = Constants(factor=(0.2325,))

    def write_sample(self, sample: Sample, path: Path) -> None:
        """See `ClassFolders.write_sample`."""
        np.savez(
            path.with_suffix(".npz"),
            moments=sample.tensors["moments"].numpy(),
            moments_flip=sample.tensors["moments_flip"].numpy(),
        )
