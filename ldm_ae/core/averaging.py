"""What every average of a network's weights has: the warm-up of its decay, and copies of buffers."""

from __future__ import annotations

from torch import nn


def warmed_up(decay: float, step: int) -> float:
    """Return the decay of update number `step`, counted from 0: min(decay, (1 + step) / (10 + step))."""
    return min(decay, (1 + step) / (10 + step))


def copy_buffers(target: nn.Module, source: nn.Module) -> None:
    """Copy the buffers, which are not averaged, to another copy of the network."""
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)
