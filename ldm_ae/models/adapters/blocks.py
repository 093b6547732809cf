"""The names of diffusers' encoder and decoder blocks for a network's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ldm_ae.core.errors import UserError


class BlockTypes(NamedTuple):
    """diffusers' `down_block_types` and `up_block_types`, one name per level."""

    down: tuple[str, ...]
    up: tuple[str, ...]


def block_types(
    block_out_channels: Sequence[int], *, attention_levels: Sequence[int], norm_num_groups: int
) -> BlockTypes:
    """Return blocks that have self-attention only at `attention_levels` (0 is the full resolution).

    Raises:
        UserError: The groups do not divide a width, or a level does not exist.
    """
    levels = len(block_out_channels)
    if bad := [width for width in block_out_channels if width % norm_num_groups]:
        raise UserError(f"block_out_channels: {bad[0]} is not divisible by norm_num_groups={norm_num_groups}")
    if bad := [level for level in attention_levels if not 0 <= level < levels]:
        raise UserError(f"attention_levels: expected levels from 0 to {levels - 1}, got {bad[0]}")
    down = tuple("AttnDownEncoderBlock2D" if i in attention_levels else "DownEncoderBlock2D" for i in range(levels))
    up = tuple("AttnUpDecoderBlock2D" if i in attention_levels else "UpDecoderBlock2D" for i in range(levels))
    return BlockTypes(down, up[::-1])
