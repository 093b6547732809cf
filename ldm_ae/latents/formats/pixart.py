"""PixArt-sigma (PixArt-alpha/PixArt-sigma, `InternalDataSigma`).

    OUT/InternData/data_info.json       [{"path", "height", "width", "ratio", "prompt"}, ...]
    OUT/InternData/img_sdxl_vae_features_{H}resolution_new/{name}.npy
                                        (2C, h, w) float32: mean and standard deviation, unscaled

`path` is the image's key as one name that ends in .png, because the reader replaces .png by .npy to get the array's
name. height, width and ratio (height / width) are the original's, if the store has them. The trainer multiplies its
samples by `scale_factor` of its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.latents.conversion.file_names import stem
from ldm_ae.latents.formats.interface import EncodedImages, Format, Samples, mean_and_std, npy, write_new


class PixArt(Format):
    """A folder of means and standard deviations, and a list of prompts."""

    name = "pixart"
    trainer = "PixArt"
    tensors = ("moments",)
    needs_captions = True
    channels = 4

    def check(self, samples: Samples) -> Iterator[str]:
        """See `Format.check`."""
        height, width = samples.size()
        if height != width:
            raise UserError(f"PixArt's folder of one resolution is for square images, these are {width}x{height}")
        yield from ()

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        root = out / "InternData"
        folder = root / f"img_sdxl_vae_features_{samples.size()[0]}resolution_new"
        folder.mkdir(parents=True)
        with (root / "data_info.json").open("w", encoding="utf-8") as file:
            for sample in samples:
                # The reader replaces every .png in the path, so none may remain inside the name.
                name = stem(sample.key).replace("/", "_").replace(".png", "_png")
                write_new(folder / f"{name}.npy", npy(mean_and_std(sample.tensors["moments"])), sample.key)
                height, width = sample.original_size or sample.size
                info = {"path": f"{name}.png", "height": height, "width": width, "ratio": height / width,
                        "prompt": sample.caption}  # fmt: skip
                file.write(f"{',' if sample.number else '['}\n{json.dumps(info, ensure_ascii=False)}")
            file.write("\n]\n")
