"""Decoding of files at full depth, for images other than RGB of 8 bits.

Nothing is reduced to 8 bits or converted to other channels: a file with other channels, samples or values than the
specification is a bad image, whose reason states both. PNG of 16 bits and TIFF of one channel come from Pillow, TIFF of
several from tifffile, arrays from NumPy, DICOM from pydicom and NIfTI from nibabel.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ldm_ae.core.errors import reason
from ldm_ae.images import decoding
from ldm_ae.images.colour import to_srgb
from ldm_ae.images.decoding import MAX_PIXELS, BadImage, Colour, ColourProfiles, Decoded
from ldm_ae.images.dicom import count_frames, is_dicom, read_frame
from ldm_ae.images.nifti import count_slices, is_nifti, read_slice
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.samples import Samples

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_WHITE_IS_ZERO = 0
_OF_8_BITS = ("1", "L", "LA", "RGB", "RGBA", "CMYK")
_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True)
class SampleDecoding:
    """Decoder of files to `Samples`, with the interface of `Decoding`.

    Args:
        pixels: The images.
        background: Without effect; transparency is kept or refused.
        colour_profiles: `convert` converts RGBA of 8 bits to sRGB; other samples stay as stored.
        max_pixels: Larger images are refused before their pixels are expanded.
    """

    pixels: PixelSpec
    background: Colour = (255, 255, 255)
    colour_profiles: ColourProfiles = "convert"
    max_pixels: int = MAX_PIXELS

    def __call__(self, data: bytes) -> Decoded:
        """Decode one complete file, whatever its name.

        Raises:
            BadImage: The file is damaged, too large, or of other images.
        """
        if not data:
            raise BadImage("empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation, profile = 1, None
            if data.startswith((_NPY, _ZIP)):
                planes = self._channels_first(_array(data, self.max_pixels * self.pixels.channels))
            elif is_dicom(data) or is_nifti(data):
                planes = self._channels_first(self._only_slice(data))
            elif data.startswith(_TIFF) and (found := self._read_tiff(data)) is not None:
                planes = self._channels_first(found)
            else:
                image, orientation = decoding.read_image(data, self.max_pixels)
                with image:
                    array, profile = self._of_pillow(image, data)
                    planes = self._channels_first(array)
                    if image.format == "TIFF":  # Pillow itself turns TIFF
                        orientation = 1
            samples = Samples(self._checked(planes), self.pixels)
        method = decoding.TRANSPOSE.get(orientation)
        return Decoded(samples if method is None else samples.transpose(method), orientation, profile)

    def size_of(self, file: BinaryIO) -> tuple[int, int]:
        """Return (height, width) of the image, without decoding its pixels if Pillow knows its header."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = decoding.size_in_header(file, self.max_pixels)
        if size is None:
            file.seek(0)
            size = self(file.read()).image.size
        return size[1], size[0]

    # -------------------------------------------------------------------------------------------------- files

    def _of_pillow(self, image: Image.Image, data: bytes) -> tuple[NDArray[Any], str | None]:
        """Return the samples (H, W) or (H, W, C) of an image that Pillow has read, and its colour conversion."""
        deep = image.format == "PNG" and data[24] == 16
        if image.mode in _OF_16_BITS or image.mode in ("I", "F"):
            array = np.asarray(image)
            if getattr(image, "tag_v2", {}).get(decoding.PHOTOMETRIC) == _WHITE_IS_ZERO:
                array = (self.pixels.high[0] + self.pixels.low[0] - array).astype(array.dtype)
            return array, None
        if deep:
            return _sixteen_bits(image, data), None
        if self.pixels.meaning == "rgba" and self.pixels.bits == 8:
            samples, profile = decoding.eight_bits(image), None
            if self.colour_profiles == "convert":
                samples, profile = to_srgb(samples, image)
            if samples.mode not in ("LA", "RGBA"):
                samples = samples.convert("RGB")
            return np.asarray(samples.convert("RGBA")), profile
        if image.mode == "1":
            image = image.convert("L")
        if image.mode not in _OF_8_BITS or (image.mode != "RGBA" and image.has_transparency_data):
            raise self._other(f"colour mode {image.mode}{' with transparency' * image.has_transparency_data}")
        return np.asarray(image), None

    def _only_slice(self, data: bytes) -> NDArray[Any]:
        """Return the samples of a DICOM or NIfTI file of one slice."""
        dicom = is_dicom(data)
        count = count_frames(data) if dicom else count_slices(data)
        if count != 1:
            raise BadImage(f"a volume of {count} slices; give the file or its folder as IMAGES, which reads each slice")
        return (read_frame if dicom else read_slice)(data, 0, self.max_pixels)

    def _read_tiff(self, data: bytes) -> NDArray[Any] | None:
        """Return the samples of a TIFF file in any order of axes; None if Pillow reads it."""
        if self._is_for_pillow(data):
            return None
        if importlib.util.find_spec("tifffile") is None:
            if (damage := tiff_damage(data)) is not None:
                raise BadImage(f"damaged: {damage}")
            raise BadImage("TIFF of these channels and bits is read by tifffile; install ldm_ae[tiff]")
        import tifffile

        try:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                first = file.pages.first
                decoding.require_size(first.imagewidth, first.imagelength, self.max_pixels)
                if first.ndim == 2 and len(file.pages) == self.pixels.channels > 1:  # each band is a page
                    return np.stack([page.asarray() for page in file.pages])
                return np.asarray(first.asarray())
        except BadImage:
            raise
        except Exception as error:  # tifffile raises many kinds for damaged files
            if "imagecodecs" in str(error):
                raise BadImage(f"{error}; install ldm_ae[tiff]") from None
            raise BadImage(f"damaged: {error or type(error).__name__}") from error

    def _is_for_pillow(self, data: bytes) -> bool:
        """Return whether Pillow reads a TIFF file at full depth, as its directory shows."""
        try:
            with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
                bits = getattr(image, "tag_v2", {}).get(decoding.BITS_PER_SAMPLE, (1,))
                known = image.mode in (*_OF_16_BITS, "I", "F") or (image.mode in _OF_8_BITS and set(bits) <= {1, 8})
                return known and len(image.getbands()) == self.pixels.channels
        except Exception:  # noqa: BLE001 - an error for a damaged file and for other samples, which tifffile tells apart
            return False

    # -------------------------------------------------------------------------------------------------- checks

    def _other(self, what: str) -> BadImage:
        """Return the reason why a file does not fit."""
        return BadImage(f"the file has {what}, and the images are {self.pixels.stored}")

    def _channels_first(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return (C, H, W) of (H, W), (H, W, C) or (C, H, W); if both may be meant, the last axis has the channels."""
        count = self.pixels.channels
        planes = array[..., None] if array.ndim == 2 else array
        if planes.ndim != 3 or 0 in planes.shape:
            raise self._other(f"an array of shape {array.shape}")
        if planes.shape[2] == count:
            planes = planes.transpose(2, 0, 1)
        elif planes.shape[0] != count:
            few = min(planes.shape[0], planes.shape[2])
            raise self._other(f"{few} channel{'s' * (few != 1)}")
        decoding.require_size(planes.shape[2], planes.shape[1], self.max_pixels)
        return planes

    def _checked(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Return the samples in the type of the specification; BadImage for other samples or values."""
        pixels, kind, width = self.pixels, planes.dtype.kind, planes.dtype.itemsize
        if pixels.bits == 0:
            fits = kind == "f"
        elif kind == "f":  # whole numbers are exact in either type
            fits = bool((np.floor(planes) == planes).all())
        else:
            fits = kind in "iu" and width * 8 >= pixels.bits and (pixels.bits > 8 or width == 1)
        if not fits:
            raise self._other(f"samples of type {planes.dtype.name}")
        samples = Samples(planes.astype(planes.dtype.newbyteorder("="), copy=False), pixels)
        for number, plane in enumerate(planes):
            held = plane if samples.present is None else plane[samples.present[number]]
            low, high = (float(held.min()), float(held.max())) if held.size else (pixels.low[number],) * 2
            if not np.isfinite([low, high]).all():
                raise self._other("NaN or infinite samples")
            if not pixels.clip and not pixels.low[number] <= low <= high <= pixels.high[number]:
                raise self._other(f"samples from {low:g} to {high:g} in {pixels.names[number]}")
        # Samples that will be clamped may be outside of the type.
        return samples.planes if pixels.clip else planes.astype(pixels.dtype, copy=False)


def _sixteen_bits(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Return all bits of a PNG of 16-bit colours.

    Pillow keeps the upper byte of each sample, in `image`. Told that the bytes are in the other order, it returns the
    lower ones.
    """
    again: Any = Image.open(io.BytesIO(data), formats=("PNG",))
    tile, *others = again.tile
    mode = tile.args
    if others or not isinstance(mode, str) or not mode.endswith(";16B"):
        raise BadImage(f"PNG of 16 bits in {mode} is not supported")
    again.tile = [tile._replace(args=f"{mode[:-1]}L")]
    try:
        again.load()
    except Exception as error:
        raise BadImage(f"PNG of 16 bits in {mode} cannot be read: {error}") from error
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)


def tiff_damage(data: bytes) -> str | None:
    """Return why a TIFF file is damaged, as far as its first directory shows; None if it seems complete."""
    try:
        directory: Any = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        starts, lengths = (directory.get(strips) or directory[tiles] for strips, tiles in ((273, 324), (279, 325)))
        end = max(start + length for start, length in zip(starts, lengths, strict=True))
    except KeyError:
        return "its directory is incomplete"
    except Exception as error:  # noqa: BLE001 - Pillow's reader raises struct.error, SyntaxError, TypeError, ...
        return reason(error)
    return f"its samples end at byte {end:,}, and the file has {len(data):,}" if end > len(data) else None


def _array(data: bytes, most: int) -> NDArray[Any]:
    """Return the array of a .npy file, without a copy, or the only one of a .npz file, of at most `most` numbers."""
    try:
        if data.startswith(_ZIP):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = archive.infolist()
                if len(members) != 1:
                    raise BadImage(f".npz with {len(members)} arrays; an image is one")
                if members[0].file_size > most * 8 + 2**16:
                    raise BadImage(f".npz of {members[0].file_size:,} bytes; max_pixels sets the limit")
                data = archive.read(members[0])
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise BadImage("an array of Python objects, which are never loaded")
        flat = np.frombuffer(data, dtype, int(np.prod(shape, dtype=np.int64)), file.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BadImage(f"damaged: {error}") from error
