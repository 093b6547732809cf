"""The limits of each channel, measured once over a source as quantiles of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ldm_ae.core.errors import UserError
from ldm_ae.data.batches import unusable
from ldm_ae.data.sources.interface import Source
from ldm_ae.images.decoding import BadImage
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.sample_files import SampleDecoding

QUANTILES = "quantiles"
"""Key of a recipe's pixels whose value, two numbers in [0, 1], stands for `low` and `high`."""
MOST_IMAGES = 256
_SAMPLES = 16384
"""Samples of each channel of an image."""


def measure_limits(source: Source, described: Mapping[str, Any], *, images: int = MOST_IMAGES) -> PixelSpec:
    """Return the pixels of a recipe with `low` and `high` measured, and `clip` set.

    Args:
        source: The images, of which at most `images` at equal distances are read, each at positions on a grid. Missing
            samples and bad images are left out.
        described: The fields of a `PixelSpec` in which `quantiles` stands for `low` and `high`.
        images: The most images.

    Raises:
        UserError: The quantiles are not two numbers in [0, 1], no image is good, or a channel is constant.
    """
    fields = dict(described)
    quantiles = fields.pop(QUANTILES)
    if (
        not isinstance(quantiles, list | tuple) or len(quantiles) != 2
        or not all(isinstance(q, float | int) and 0 <= q <= 1 for q in quantiles) or quantiles[0] >= quantiles[1]
    ):  # fmt: skip
        raise UserError(f"pixels: quantiles must be two increasing numbers in [0, 1], got {quantiles!r}")
    if given := [name for name in ("low", "high", "clip") if name in fields]:
        raise UserError(f"pixels: {given[0]} and quantiles exclude each other; remove one of them")
    pixels = PixelSpec.from_json(fields)
    decode = SampleDecoding(pixels=replace(pixels, clip=True))
    found: list[list[np.ndarray[Any, Any]]] = [[] for _ in pixels.names]
    reasons = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(images, len(source))).astype(int)):
        try:
            samples = decode(source[int(index)].data).image
        except (BadImage, OSError) as error:
            reasons.append(f"{source.key(int(index))}: {unusable(error)}")
            continue
        step = max(1, int(np.ceil((samples.width * samples.height / _SAMPLES) ** 0.5)))
        for channel, values in enumerate(found):
            plane = samples.planes[channel, ::step, ::step]
            kept = plane if samples.present is None else plane[samples.present[channel, ::step, ::step]]
            values.append(kept.astype(np.float64).ravel())
    if not any(values.size for values in found[0]):
        raise UserError(f"pixels: no image can be measured; the first: {reasons[0] if reasons else 'all is missing'}")
    limits = [np.quantile(np.concatenate(values), quantiles).tolist() for values in found]
    for name, (low, high) in zip(pixels.names, limits, strict=True):
        if not low < high:
            raise UserError(f"pixels: {name} is {low:g} at both quantiles {quantiles}; state low and high")
    low, high = zip(*limits, strict=True)
    return replace(pixels, low=low, high=high, clip=True)
