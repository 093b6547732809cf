"""torchvision's `DatasetFolder` with numpy arrays (DC-AE's diffusion trainer, mit-han-lab/efficientvit).

    OUT/{class:04d}/{i:08d}.npy     (C, h, w) float32 scaled latents

The reader numbers the class folders in their order from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.base import Format, Pictures, Samples, check_classes, class_digits, npy


class DatasetFolder(Format):
    """A folder of latents for each class."""

    name = "datasetfolder"
    trainer = "DatasetFolder"
    tensors = ("latents",)
    needs_labels = True
    scaled = True
    constants = Constants(factor=(1.0,))

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
            (folder / f"{sample.number:08d}.npy").write_bytes(npy(sample.tensors["latents"].numpy()))
