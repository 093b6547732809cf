"""Photos beside copies of themselves in other colours: for training sets that are small.

A few hundred photos have few saturated colours, and an autoencoder trained on them alone turns green eyes brown. A copy
has the brightness of its photo (Y of JPEG's YCbCr); its colours are rotated around grey by a random angle and their
saturation is scaled by a random factor.

    python scripts/recolour.py IMAGES OUT       # OUT/photos: the unchanged files; OUT/recoloured: PNG

Angle and factor are functions of the seed and the image's key.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_ae.core.errors import exit_status
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.data import decode_image, open_source
from ldm_ae.io.files import require_new_folder
from ldm_ae.latents.decoding import output_names

LEAST, MOST = 0.5, 1.8
"""Range of the factor; 1 keeps the saturation of the colours."""


def recolour(image: Image.Image, angle: float, factor: float) -> Image.Image:
    """Return the image with its colours rotated by `angle` radians around grey and `factor` times as saturated."""
    y, cb, cr = (np.asarray(plane).astype(np.float32) for plane in image.convert("YCbCr").split())
    chroma = (cb - 128 + 1j * (cr - 128)) * factor * np.exp(1j * angle)
    planes = (plane.round().clip(0, 255).astype(np.uint8) for plane in (y, chroma.real + 128, chroma.imag + 128))
    return Image.merge("YCbCr", [Image.fromarray(plane) for plane in planes]).convert("RGB")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("images", help="IMAGES, as for ldm-ae train")
    parser.add_argument("out", type=Path, help="new folder for the images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the colours (default: %(default)s)")
    options = parser.parse_args(arguments)
    return exit_status(lambda: write_photos(options.images, options.out, options.seed), "recolour")


def write_photos(images: str, out: Path, seed: int) -> None:
    """Write `photos` and `recoloured` into the new folder `out`."""
    require_new_folder(out, "the photos")
    source = open_source(images)
    names = output_names(source.key(index) for index in range(len(source)))
    with ProgressDisplay("recolouring", len(source)) as progress:
        for index, (key, name) in enumerate(names.items()):
            data = source[index].data
            draw = random.Random(f"{seed}:{key}")
            image = recolour(decode_image(data), draw.uniform(-np.pi, np.pi), draw.uniform(LEAST, MOST))
            plain = (out / "photos" / name).with_suffix(Path(key).suffix)
            other = out / "recoloured" / name
            for path in (plain, other):
                path.parent.mkdir(parents=True, exist_ok=True)
            plain.write_bytes(data)
            image.save(other)
            progress(index + 1)


if __name__ == "__main__":
    sys.exit(main())
