"""Maps of several sizes as one tensor, which the codes and latents of a hierarchical autoencoder are.

Map i of m, the coarsest first, has 2^i times the sides of map 0. The packed tensor lies at the places of map 0: it has
the 1, 4, 16, ... places of each map within one of them as channels, row by row, one map after the other. Nothing is
repeated and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor


def places_of_maps(maps: int) -> int:
    """Return the number of places of all maps within one of the coarsest: 1 + 4 + 16 + ..."""
    return (4**maps - 1) // 3


def pack_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return maps (B, C, h 2^i, w 2^i) of any dtype, the coarsest first, as (B, C places, h, w).

    Channel `places_of_maps(i) C + c 4^i + 2^i r + s` is channel c of map i, at row r and column s of the place.
    """
    parts = [rearrange(m, "b c (h r) (w s) -> b (c r s) h w", r=2**i, s=2**i) for i, m in enumerate(maps)]
    return torch.cat(parts, dim=1)


def split_maps(packed: Tensor, maps: int) -> list[Tensor]:
    """Return the maps (B, C, h 2^i, w 2^i) of a packed tensor (B, C places, h, w), the coarsest first: the inverse."""
    channels = packed.shape[1] // places_of_maps(maps)
    parts = packed.split([channels * 4**i for i in range(maps)], dim=1)
    return [rearrange(p, "b (c r s) h w -> b c (h r) (w s)", r=2**i, s=2**i) for i, p in enumerate(parts)]
