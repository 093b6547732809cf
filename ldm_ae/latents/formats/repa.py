"""REPA (sihyun-yu/REPA, `CustomDataset`).

    OUT/vae-sd/{i // 1000:05d}/img-mean-std-{i:08d}.npy    (2C, h, w) float32: mean and standard deviation, unscaled
    OUT/vae-sd/dataset.json                                {"labels": [[name, int], ...]}
    OUT/images/{i // 1000:05d}/img{i:08d}.png              the encoded pixels, paired by the order of names

The trainer multiplies its samples by 0.18215.
"""

from __future__ import annotations

from pathlib import Path

from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import EncodedImages, Format, Samples, mean_and_std, npy, numbered, write_labels

_LATENTS, _IMAGES = "img-mean-std-", "img"


class REPA(Format):
    """A folder of means and standard deviations and one of images."""

    name = "repa"
    trainer = "REPA"
    tensors = ("moments",)
    needs_labels = True
    square = True
    takes = frozenset({"images"})
    channels = 4
    constants = Constants(factor=(0.18215,))

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:
        """See `Format.write`."""
        assert images is not None, "the format takes images"
        for sample in samples:
            values = npy(mean_and_std(sample.tensors["moments"]))
            latents = out / "vae-sd" / numbered(sample.number, _LATENTS, "npy")
            image = out / "images" / numbered(sample.number, _IMAGES, "png")
            for path, content in ((latents, values), (image, images.png(sample))):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        with (out / "vae-sd" / "dataset.json").open("wb") as file:
            write_labels(file, samples, _LATENTS, "npy")
