"""Geometry of overlapping tiles: their places, the part that each owns, and weights that add up to 1 everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Strip(NamedTuple):
    """A tile along one axis."""

    place: slice
    """Its latents."""
    owned: slice
    """Those of its latents that lie deeper in it than in any other tile; these parts cover the axis without overlap."""
    weights: Tensor
    """(factor * latents,) float32: from 0 to 1, for each position."""


class Tile(NamedTuple):
    """A tile of an image."""

    rows: Strip
    columns: Strip

    @property
    def weights(self) -> Tensor:
        """The product (h, w) of the weights along both axes, so that those of all tiles add up to 1 everywhere."""
        return self.rows.weights[:, None] * self.columns.weights


def tiles(height: int, width: int, *, tile: int, overlap: int, factor: int = 1) -> Iterator[Tile]:
    """Yield the tiles of height x width latents, from top left to bottom right. All tiles have the same size.

    Args:
        height: Latents along the first axis.
        width: Latents along the second axis.
        tile: Maximum side of a tile in latents.
        overlap: Minimum overlap of neighbours in latents; tiles are evenly spaced, so that it may be larger.
        factor: Positions for each latent, at which the weights are computed; the downsample factor for pixels.
    """
    columns = _strips(width, tile, overlap, factor)
    for rows in _strips(height, tile, overlap, factor):
        for strip in columns:
            yield Tile(rows, strip)


def _strips(length: int, tile: int, overlap: int, factor: int) -> list[Strip]:
    assert 0 <= overlap < tile, (overlap, tile)
    if length <= tile:
        whole = slice(0, length)
        return [Strip(whole, whole, torch.ones(length * factor))]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    between = [(start + tile + following) // 2 for start, following in itertools.pairwise(starts)]
    ramps = torch.zeros(count, length * factor, dtype=torch.float64)
    for i, start in enumerate(starts):
        ramps[i, start * factor : (start + tile) * factor] = 1.0
    for i, (start, following) in enumerate(itertools.pairwise(starts)):
        shared = slice(following * factor, (start + tile) * factor)
        rise = _ramp(shared.stop - shared.start)
        ramps[i, shared] *= 1.0 - rise
        ramps[i + 1, shared] *= rise
    ramps /= ramps.sum(dim=0)  # it is 1 already, unless three tiles overlap
    return [
        Strip(
            slice(start, start + tile), slice(first, last),
            ramps[i, start * factor : (start + tile) * factor].float(),
        )
        for i, (start, first, last) in enumerate(zip(starts, [0, *between], [*between, length], strict=True))
    ]  # fmt: skip


def _ramp(length: int) -> Tensor:
    """Return (length,) float64 that rises from 0 to 1 with slope 0 at both ends.

    The border of a tile, where the network sees padding in place of the image, then has almost no weight.
    """
    place = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return torch.sin(place * (math.pi / 2)).square()
