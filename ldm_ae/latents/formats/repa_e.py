"""REPA-E (End2End-Diffusion/REPA-E, `CustomH5Dataset`).

    OUT/images.h5           {i // 1000:05d}/img{i:08d}.png: the bytes of a PNG file; dataset.json: its bytes
    OUT/NAME.h5             {i // 1000:05d}/img-mean-std-{i:08d}.npy: (2C, h, w) float32 array of mean and standard
                            deviation, unscaled; dataset.json: the bytes of {"labels": [[name, int], ...]}
    OUT/images_h5.json, OUT/NAME_h5.json    lists of the names in each
    OUT/NAME-latents-stats.pt               {'latents_scale': 1 / std, 'latents_bias': mean}, each (1, C, 1, 1) float32

Images and latents are paired by the order of their names. The trainer looks for the statistics beside its autoencoder's
checkpoint: put the file there. NAME is `--name`, by default `vae`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.latents.formats.interface import (
    EncodedImages,
    Format,
    Options,
    Samples,
    file_name,
    library,
    mean_and_std,
    numbered,
    write_labels,
)
from ldm_ae.latents.store.files import write_bytes

_LATENTS, _IMAGES = "img-mean-std-", "img"


class REPAE(Format):
    """Two HDF5 files, one of latents and one of images."""

    name = "repa-e"
    trainer = "REPA-E"
    tensors = ("moments",)
    needs_labels = True
    square = True
    takes = frozenset({"images", "name"})
    normalizes = True

    def __init__(self, options: Options):
        super().__init__(options)
        self._h5py = library("h5py", self.name)
        self._name = file_name(options.name or "vae")

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:
        """See `Format.write`."""
        assert images is not None, "the format takes images"
        statistics = samples.store.statistics
        if constant := statistics.constant_channels:
            raise UserError(
                f"channel {constant[0]} of the latents is constant, and REPA-E divides by its standard deviation; "
                "train the autoencoder further, or convert to another format"
            )
        with (
            self._h5py.File(out / f"{self._name}.h5", "w") as latent_file,
            self._h5py.File(out / "images.h5", "w") as image_file,
            (out / f"{self._name}_h5.json").open("w") as latent_names,
            (out / "images_h5.json").open("w") as image_names,
        ):
            files = ((latent_file, latent_names, _LATENTS, "npy"), (image_file, image_names, _IMAGES, "png"))
            for sample in samples:
                contents = (mean_and_std(sample.tensors["moments"]), np.bytes_(images.png(sample)))
                for (file, names, prefix, extension), content in zip(files, contents, strict=True):
                    name = numbered(sample.number, prefix, extension)
                    file.create_dataset(name, data=content)
                    names.write(f"{',' if sample.number else '['}\n{json.dumps(name)}")
            for file, names, prefix, extension in files:
                _finish(file, names, samples, prefix, extension)
        buffer = io.BytesIO()  # torch.save puts a path's name into the bytes.
        scale, bias = (v.float().view(1, -1, 1, 1) for v in (1 / statistics.channel_std, statistics.channel_mean))
        torch.save({"latents_scale": scale, "latents_bias": bias}, buffer)
        write_bytes(out / f"{self._name}-latents-stats.pt", buffer.getvalue())


def _finish(file: Any, names: IO[str], samples: Samples, prefix: str, extension: str) -> None:
    """Write the labels, and the end of the list of names."""
    labels = io.BytesIO()
    write_labels(labels, samples, prefix, extension)
    file.create_dataset("dataset.json", data=np.bytes_(labels.getvalue()))
    names.write(',\n"dataset.json"\n]\n')
