"""torchvision's `DatasetFolder` with numpy arrays (DC-AE's diffusion trainer, mit-han-lab/efficientvit).

    OUT/{class:04d}/{i:08d}.npy     (C, h, w) float32 scaled latents

The reader numbers the class folders from 0 in their order.
"""

from __future__ import annotations

from pathlib import Path

from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import ClassFolders, Sample, npy


class DatasetFolder(ClassFolders):
    """A folder of latents for each class."""

    name = "datasetfolder"
    trainer = "DatasetFolder"
    tensors = ("latents",)
    scaled = True
    constants = Constants(factor=(1.0,))

    def write_sample(self, sample: Sample, path: Path) -> None:
        """See `ClassFolders.write_sample`."""
        path.with_suffix(".npy").write_bytes(npy(sample.tensors["latents"].numpy()))
