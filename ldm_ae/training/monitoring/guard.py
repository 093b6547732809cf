"""Detection of non-finite values before they reach a parameter, across all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm_ae.core.errors import RunError
from ldm_ae.data import Batch

SHOWN_KEYS = 8
AVERAGED = frozenset({"adaptive_weight", "grad_norm", "discriminator_grad_norm"})


class Guard:
    """The decision whether a step may be taken, and the undoing of its changes if not.

    Args:
        accelerator: All its processes call together and get the same answer.
        tensors: The tensors that a step changes before its optimizers do: batch normalization's statistics, codebooks.
        limit: Number of consecutive bad steps after which the run stops.
    """

    def __init__(self, accelerator: Accelerator, tensors: Sequence[Tensor], limit: int):
        self._accelerator = accelerator
        self._tensors = [tensor.detach() for tensor in tensors]
        self._kept = [tensor.clone() for tensor in self._tensors]
        self._limit = limit
        self.in_a_row = 0

    def before_step(self) -> None:
        """Keep a copy of the current tensors."""
        if self._tensors:
            torch._foreach_copy_(self._kept, self._tensors)

    def are_finite(self, values: Mapping[str, Tensor]) -> bool:
        """Return whether all scalars are finite on all processes, by one small reduction."""
        finite = torch.stack([value.detach().float() for value in values.values()]).isfinite().all()
        bad = self._accelerator.reduce((~finite).float(), reduction="sum")
        return not bool(bad)

    def undo(self) -> None:
        """Restore the tensors that `before_step` kept."""
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._kept)

    def describe(
        self, values: Mapping[str, Tensor], batches: Sequence[Batch], reconstructions: Sequence[Tensor]
    ) -> str:
        """Describe which values of which samples were not finite, over all processes; every process must call it."""
        terms = [name for name, value in values.items() if not bool(value.isfinite())]
        mine = (terms, _bad_keys(batches, reconstructions) if terms else [])
        every: list[Any] = [mine]
        if self._accelerator.num_processes > 1:
            every = [None] * self._accelerator.num_processes
            torch.distributed.all_gather_object(every, mine)
        # A value that is averaged over processes is bad everywhere; a process's own loss shows where it came from.
        sources = [found for found in every if set(found[0]) - AVERAGED] or every
        names = dict.fromkeys(chain.from_iterable(terms for terms, _ in sources))
        keys = list(dict.fromkeys(chain.from_iterable(keys for _, keys in sources)))
        more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
        return f"{', '.join(names)} not finite; samples {', '.join(islice(keys, SHOWN_KEYS))}{more}"

    def count(self, words: str) -> None:
        """Count one more consecutive bad step.

        Raises:
            RunError: The number of bad steps has reached the limit.
        """
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            raise RunError(
                f"stopped after {self.in_a_row} consecutive steps that were not finite, the last with {words}; they "
                "changed nothing, and the last checkpoint is valid: check these images, or lower the learning rate"
            )


def _bad_keys(batches: Sequence[Batch], reconstructions: Sequence[Tensor]) -> list[str]:
    """Return the samples whose pixels are not finite; else those whose reconstructions are not; else all."""
    keys = [key for batch in batches for key in batch.keys]
    for images in ([batch.pixel_values for batch in batches], reconstructions):
        bad = [~image.isfinite().all() for batch in images for image in batch]
        if found := [key for key, is_bad in zip(keys, bad, strict=True) if is_bad]:
            return found
    return keys
