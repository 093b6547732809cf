"""MAR (LTH14/mar, `CachedFolder`).

    OUT/{class:04d}/{i:08d}.npz     moments, moments_flip   (2C, h, w) float32: mean and log-variance, unscaled

The reader takes one of the two at random, numbers the class folders in their order from 0, and multiplies what it
draws by 0.2325.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.base import Format, Pictures, Samples, check_classes, class_digits


class MAR(Format):
    """A folder of moments for each class."""

    name = "mar"
    trainer = "MAR"
    tensors = ("moments", "moments_flip")
    needs_flips = True
    needs_labels = True
    square = True
    constants = Constants(factor=(0.2325,))

    def check(self, samples: Samples) -> Iterator[str]:
        """See `Format.check`."""
        yield from check_classes(samples, self.trainer)

    def metadata(self, samples: Samples) -> dict[str, Any]:
        """See `Format.metadata`."""
        return {"labels": np.unique(samples.labels).tolist()}

    def write(self, samples: Samples, out: Path, pictures: Pictures | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        digits = class_digits(samples)
        for sample in samples:
            folder = out / f"{sample.label:0{digits}d}"
            folder.mkdir(exist_ok=True)
            np.savez(
                folder / f"{sample.number:08d}.npz",
                moments=sample.tensors["moments"].numpy(),
                moments_flip=sample.tensors["moments_flip"].numpy(),
            )
