"""Ending a run on a signal: Slurm's SIGTERM before a time limit, Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch

from ldm_ae.core.errors import Terminated

if TYPE_CHECKING:
    from accelerate import Accelerator

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals(AbstractContextManager["Signals"]):
    """A context that records the first SIGINT or SIGTERM; a second one acts as it does outside the context."""

    received = 0

    def __enter__(self) -> Signals:
        self._previous = {number: signal.signal(number, self._note) for number in _STOP_SIGNALS}
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def agreed_signal(accelerator: Accelerator, received: int) -> int:
    """Return the largest signal number that any process has received; 0 for none. Every process must call it."""
    if accelerator.num_processes == 1:
        return received
    numbers = accelerator.gather(torch.tensor([received], device=accelerator.device))
    return int(numbers.max())


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM within the context, as Ctrl-C raises `KeyboardInterrupt`."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
