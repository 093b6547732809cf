"""sd-scripts (kohya-ss/sd-scripts, `--cache_latents_to_disk`).

    OUT/{key without extension}_{W:04d}x{H:04d}_{arch}.npz      W, H: the size in the image file's header
        latents             (C, h, w) float32, unscaled
        latents_flipped     the mirror image's, if the store has them; needed for `--flip_aug`
        original_size       (2,) int64 width, height, upright
        crop_ltrb           (4,) float64, as sd-scripts computes it from the original and the encoded size

For the architectures flux and sd3 each key ends in _{h}x{w}. The files belong beside the images: copy OUT over the
encoded folder. sd-scripts uses a file if its bucket for the image has the encoded size.

sd-scripts does not rotate photos by their EXIF orientation, and looks for a cache file under the size in the header.
The latents are of the upright image. If both have the same bucket, a square, sd-scripts gets the upright one; other
photos that EXIF turns by a quarter are skipped, because their latents do not have the shape of sd-scripts' bucket.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ldm_ae.core.errors import UserError
from ldm_ae.latents.conversion.file_names import file_stem
from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import EncodedImages, Format, Options, Samples, architecture, write_new

_CONSTANTS = {
    "sd": Constants(factor=(0.18215,)),
    "sdxl": Constants(factor=(0.13025,)),
    "sd3": Constants(factor=(1.5305,), shift=(0.0609,)),
    "flux": Constants(factor=(0.3611,), shift=(0.1159,)),
}
_FIRST_QUARTER_TURN = 5
"""The EXIF orientations from this one on swap width and height."""
_REMEDY = "rotate the files themselves, such as with `exiftran -ai`, and encode them again"


class Kohya(Format):
    """A file of latents for each image."""

    name = "kohya"
    trainer = "sd-scripts"
    tensors = ("latents", "latents_flip")
    needs_original_size = True
    several_sizes = True
    takes = frozenset({"arch"})

    def __init__(self, options: Options):
        super().__init__(options)
        self._arch = architecture(self.name, options.arch, _CONSTANTS)
        self.channels = 4 if self._arch in ("sd", "sdxl") else 16
        self.constants = _CONSTANTS[self._arch]

    def arrange(self, rows: pa.Table) -> NDArray[np.int64]:
        """See `Format.arrange`."""
        quarter_turn = pc.fill_null(pc.greater_equal(rows["orientation"], _FIRST_QUARTER_TURN), False).to_numpy()
        sizes = [bucket.split("x") for bucket in rows["bucket"].to_pylist()]
        square = np.array([height == width for height, width in sizes], bool)
        fits = square | ~quarter_turn
        if not fits.any():
            raise UserError(f"all {len(rows)} images are rotated by EXIF, which sd-scripts does not apply; {_REMEDY}")
        self._skipped = rows["key"].filter(pa.array(~fits)).to_pylist()
        return np.flatnonzero(fits)

    def check(self, samples: Samples) -> Iterator[str]:  # noqa: ARG002
        """See `Format.check`."""
        if self._skipped:
            yield (
                f"{len(self._skipped)} images are skipped, the first is {self._skipped[0]}: they are not square and "
                f"EXIF rotates them, which sd-scripts does not apply; {_REMEDY}"
            )

    def metadata(self, samples: Samples) -> dict[str, Any]:  # noqa: ARG002
        """See `Format.metadata`."""
        return {"left_out": self._skipped}

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        for sample in samples:
            assert sample.original_size is not None, "checked before"
            height, width = sample.original_size
            values: dict[str, NDArray[np.generic]] = {
                "latents": sample.tensors["latents"].numpy(),
                "original_size": np.array([width, height], np.int64),
                "crop_ltrb": _crop(sample.size, sample.original_size),
            }
            if "latents_flip" in sample.tensors:
                values["latents_flipped"] = sample.tensors["latents_flip"].numpy()
            if self._arch in ("flux", "sd3"):
                h, w = sample.tensors["latents"].shape[1:]
                values = {f"{name}_{h}x{w}": value for name, value in values.items()}
            buffer = io.BytesIO()
            np.savez(buffer, **values)  # type: ignore[arg-type]
            turned = (sample.orientation or 1) >= _FIRST_QUARTER_TURN
            size = f"{height:04d}x{width:04d}" if turned else f"{width:04d}x{height:04d}"
            path = out / f"{file_stem(sample.key)}_{size}_{self._arch}.npz"
            write_new(path, buffer.getvalue(), sample.key)


def _crop(size: tuple[int, int], original: tuple[int, int]) -> NDArray[np.float64]:
    """Return left, top, right, bottom of the whole image scaled into the encoded size, as in SDXL's conditioning."""
    height, width = size
    ratio = original[1] / original[0]
    scaled_width, scaled_height = (height * ratio, height) if width / height > ratio else (width, width / ratio)
    left, top = (width - scaled_width) // 2, (height - scaled_height) // 2
    return np.array([left, top, left + scaled_width, top + scaled_height], np.float64)
