"""A check, before any other work, that a feature network supports an image size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from ldm_ae.core.dry_run import RefusedError, dry_run, smallest_side
from ldm_ae.evaluation.metrics.interface import CannotScoreError

Network = TypeVar("Network", bound=nn.Module)


def require_size(network: Network, call: Callable[[Network, Sequence[Tensor]], Any], shape: Sequence[int]) -> None:
    """Raise `CannotScoreError` with the smallest valid size if the network does not support such images.

    Args:
        network: A network on any device; it is not changed.
        call: Computes the part that depends on the size, given the network and one tensor.
        shape: (B, 3, H, W).
    """
    try:
        dry_run(network, call, [(1, *shape[1:])])
    except RefusedError as error:
        side = smallest_side(network, call, (1, *shape[1:]))
        why = error if side is None else f"the smallest square size is {side}x{side}"
        raise CannotScoreError(
            f"the network does not support images of {shape[-2]}x{shape[-1]}, height x width: {why}"
        ) from error
