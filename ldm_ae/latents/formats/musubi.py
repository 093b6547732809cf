"""musubi-tuner (kohya-ss/musubi-tuner, the cache of `*_cache_latents.py`).

    OUT/{name}_{W:04d}x{H:04d}_{arch}.safetensors       W, H: the image's original size, upright, from which
                                                        musubi-tuner chooses the bucket; name: the key's last part
        latents_1x{h}x{w}_float32       (C, 1, h, w), or (C, h, w) for zi
        header                          architecture, width, height, format_version "1.0.1"

OUT is the data set's cache_directory; musubi-tuner must add the text encoder's cache. The architectures hv
(HunyuanVideo) and zi (Z-Image) hold unscaled latents, qi (Qwen-Image) and wan scaled ones.
"""

from __future__ import annotations

from pathlib import Path

from ldm_ae.io.tensor_files import safetensors_pieces
from ldm_ae.latents.conversion.file_names import file_stem
from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import EncodedImages, Format, Options, Samples, architecture, write_new

_FULL_NAMES = {"hv": "hunyuan_video", "qi": "qwen_image", "wan": "wan", "zi": "z_image"}
_CONSTANTS = {
    "hv": Constants(factor=(0.476986,)),
    "qi": Constants(factor=(1.0,)),
    "wan": Constants(factor=(1.0,)),
    "zi": Constants(factor=(0.3611,), shift=(0.1159,)),
}


class Musubi(Format):
    """A file of latents for each image."""

    name = "musubi"
    trainer = "musubi-tuner"
    tensors = ("latents",)
    needs_original_size = True
    several_sizes = True
    takes = frozenset({"arch"})
    channels = 16

    def __init__(self, options: Options):
        super().__init__(options)
        self._arch = architecture(self.name, options.arch, _FULL_NAMES)
        self.scaled = self._arch in ("qi", "wan")
        self.constants = _CONSTANTS[self._arch]

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        for sample in samples:
            assert sample.original_size is not None, "checked before"
            height, width = sample.original_size
            h, w = sample.tensors["latents"].shape[1:]
            values = sample.tensors["latents"] if self._arch == "zi" else sample.tensors["latents"][:, None]
            header = {
                "architecture": _FULL_NAMES[self._arch],
                "width": str(width),
                "height": str(height),
                "format_version": "1.0.1",
            }
            content = b"".join(safetensors_pieces({f"latents_1x{h}x{w}_float32": values}, header))
            name = file_stem(sample.key).rpartition("/")[2]
            write_new(out / f"{name}_{width:04d}x{height:04d}_{self._arch}.safetensors", content, sample.key)
