"""Wan's and Qwen-Image's autoencoders under the keys of Wan's code: `encoder.downsamples`, `encoder.middle`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ldm_ae.models.loading.layouts.diffusers_wan import CLASSES, DiffusersWan, infer_wan
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout

# (Wan's, diffusers) names: of the layers outside any level, ...
_OUTER = (
    ("encoder.conv1.", "encoder.conv_in."), ("decoder.conv1.", "decoder.conv_in."), ("conv1.", "quant_conv."),
    ("conv2.", "post_quant_conv."),
    *((f"{half}.{theirs}", f"{half}.{ours}") for half in ("encoder", "decoder") for theirs, ours in (
        ("middle.0.", "mid_block.resnets.0."), ("middle.1.", "mid_block.attentions.0."),
        ("middle.2.", "mid_block.resnets.1."), ("head.0.", "norm_out."), ("head.2.", "conv_out."),
    )),
)  # fmt: skip
# ... and of those in a residual block.
_INNER = (
    (".residual.0.", ".norm1."), (".residual.2.", ".conv1."), (".residual.3.", ".norm2."), (".residual.6.", ".conv2."),
    (".shortcut.", ".conv_shortcut."),
)  # fmt: skip
_RESAMPLING = re.compile(r"\.(?:resample|time_conv)\.")
_NESTED = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)", re.ASCII)
_FLAT = re.compile(r"decoder\.upsamples\.(\d+)\.(.+)", re.ASCII)


class Wan(Layout):
    """The keys of Wan 2.1 and Qwen-Image, whose levels are flat lists, and of Wan 2.2, whose levels are nested."""

    keys = "Wan's keys"
    marks = ("encoder.conv1.weight", "decoder.conv1.weight", "encoder.head.2.weight", "decoder.head.2.weight")
    class_names = CLASSES

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return any(key.startswith("encoder.downsamples.") for key in state)

    def infer(self, contents: Contents) -> Inference:
        names = _to_diffusers(contents.state)
        return infer_wan(contents, {names[key]: value for key, value in contents.state.items()})

    def example(self) -> dict[str, dict[str, Tensor]]:
        state = DiffusersWan().example()["AutoencoderKLWan"]
        return {"AutoencoderKLWan": {self.original_name(key, state): value for key, value in state.items()}}

    def original_name(self, key: str, keys: Iterable[str]) -> str:
        keys = [*keys, key]
        in_block = re.search(r"(?:_blocks|resnets)\.\d", key) is not None
        if match := re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(.+)", key):
            half, level, rest = match[1], int(match[2]), match[3]
            key = f"{half}samples.{level}.{rest}"
            within = re.match(r"(resnets\.(\d+)|upsamplers\.0|downsampler|upsampler)\.(.+)", rest)
            if within is not None:
                counts = [_resnets(keys, half, i) for i in range(level + 1)]
                place = int(within[2]) if within[2] else counts[level]
                if "upsamplers" in rest or (half == "decoder.up" and not _is_nested(keys)):
                    key = f"{half}samples.{sum(counts[:level]) + level + place}.{within[3]}"
                else:
                    key = f"{half}samples.{level}.{half.rpartition('.')[2]}samples.{place}.{within[3]}"
        for theirs, ours in _OUTER:
            key = f"{theirs}{key.removeprefix(ours)}" if key.startswith(ours) else key
        for theirs, ours in _INNER if in_block else ():
            key = key.replace(ours, theirs)
        return key


def _resnets(keys: Iterable[str], half: str, level: int) -> int:
    """Return the number of residual blocks in a level of nested keys of diffusers."""
    pattern = re.compile(rf"{re.escape(half)}_blocks\.{level}\.resnets\.(\d+)\.")
    return len({match[1] for key in keys if (match := pattern.match(key))})


def _is_nested(keys: Iterable[str]) -> bool:
    return any(key.startswith("encoder.down_blocks.0.resnets.") for key in keys)


def _to_diffusers(keys: Iterable[str]) -> dict[str, str]:
    """Map each of Wan's keys to diffusers' key."""
    keys = list(keys)
    resampling = {int(match[1]) for key in keys if (match := _FLAT.match(key)) and _RESAMPLING.search(f".{match[2]}")}
    names = {}
    for key in keys:
        name = key
        if match := _NESTED.fullmatch(key):
            half, way, level, place, rest = match.groups()
            sampler = f"{way}sampler" if _RESAMPLING.search(f".{rest}") else f"resnets.{place}"
            name = f"{half}.{way}_blocks.{level}.{sampler}.{rest}"
        elif match := _FLAT.fullmatch(key):
            place = int(match[1])
            level = sum(other < place for other in resampling)
            start = max((other + 1 for other in resampling if other < place), default=0)
            part = "upsamplers.0" if place in resampling else f"resnets.{place - start}"
            name = f"decoder.up_blocks.{level}.{part}.{match[2]}"
        elif key.startswith("encoder.downsamples."):
            name = key.replace("encoder.downsamples.", "encoder.down_blocks.", 1)
        for theirs, ours in _OUTER:
            name = f"{ours}{name.removeprefix(theirs)}" if key.startswith(theirs) else name
        for theirs, ours in _INNER:
            name = name.replace(theirs, ours)
        names[key] = name
    return names
