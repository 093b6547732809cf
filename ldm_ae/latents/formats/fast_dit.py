"""fast-DiT (chuanyangjin/fast-DiT, `CustomDataset`).

    OUT/imagenet256_features/{i:08d}.npy    (1, C, h, w) float32 scaled latents
    OUT/imagenet256_labels/{i:08d}.npy      (1,) int64

They are paired by the order of the names in the two folders, which must not contain any other file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import EncodedImages, Format, Samples, npy


class FastDiT(Format):
    """A folder of latents and one of labels."""

    name = "fast-dit"
    trainer = "fast-DiT"
    tensors = ("latents",)
    needs_labels = True
    square = True
    channels = 4
    scaled = True
    constants = Constants(factor=(1.0,))

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        features, labels = out / "imagenet256_features", out / "imagenet256_labels"
        for folder in (features, labels):
            folder.mkdir()
        for sample in samples:
            (features / f"{sample.number:08d}.npy").write_bytes(npy(sample.tensors["latents"][None].numpy()))
            (labels / f"{sample.number:08d}.npy").write_bytes(npy(np.array([sample.label], np.int64)))
