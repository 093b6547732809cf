"""Tiny autoencoders (TAESD, TAESDXL, TAESD3, TAEF1) under the keys of their author's code, in one file or two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ldm_ae.io.weight_files import is_safetensors_file, read_weight_file
from ldm_ae.models.loading.layouts.diffusers_tiny import DiffusersTiny, infer_tiny
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout

_HALVES = ("encoder", "decoder")
_BLOCKS = (("encoder", 1), ("decoder", 3))
"""The number of the first block of each half."""
_KEY = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d+)\.(.+)", re.ASCII)
_OFFSET = {"encoder": 0, "decoder": 1}
"""Layers that stand before diffusers' first one: the decoder's clamp has no weights."""


class Taesd(Layout):
    """The keys of https://github.com/madebyollin/taesd: `encoder.0.weight`, or `taesd_encoder.0.weight` in one file;
    `0.weight` in `taesd_encoder.safetensors` and `taesd_decoder.safetensors`, of which either opens both."""

    keys = "TAESD's keys"
    marks = ("encoder.0.weight", "decoder.1.weight", "taesd_encoder.0.weight", "taesd_decoder.1.weight")
    class_names = ("AutoencoderTiny",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return all(any(key.endswith(f"{half}.{first}.conv.0.weight") for key in state) for half, first in _BLOCKS)

    def infer(self, contents: Contents) -> Inference:
        return infer_tiny(contents, {_to_diffusers(key): value for key, value in contents.state.items()})

    def with_other_half(self, path: Path, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not tensors or not all(re.match(r"\d+\.", key) for key in tensors):
            return tensors
        own = next((half for half in _HALVES if half in path.stem), None)
        if own is None:
            return tensors
        other = _HALVES[1 - _HALVES.index(own)]
        beside = path.with_name(path.name.replace(own, other))
        if not is_safetensors_file(beside):
            return tensors
        found = {own: tensors, other: read_weight_file(beside).tensors}
        return {f"{half}.{key}": value for half in _HALVES for key, value in found[half].items()}

    def example(self) -> dict[str, dict[str, Tensor]]:
        state = DiffusersTiny().example()["AutoencoderTiny"]
        return {"AutoencoderTiny": {self.original_name(key, state): value for key, value in state.items()}}

    def original_name(self, key: str, keys: Iterable[str]) -> str:
        del keys
        half, _, number, rest = key.split(".", 3)
        return f"{half}.{int(number) + _OFFSET[half]}.{rest}"


def _to_diffusers(key: str) -> str:
    match = _KEY.fullmatch(key)
    if match is None or int(match[2]) < _OFFSET[match[1]]:
        return key
    return f"{match[1]}.layers.{int(match[2]) - _OFFSET[match[1]]}.{match[3]}"
