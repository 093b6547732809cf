"""Ending a run when the system asks for it: Slurm's SIGTERM before a time limit, Ctrl-C."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from types import FrameType

EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""After the run has been saved: the shell's convention, 128 + the signal's number."""


class Stopped(Exception):  # noqa: N818 - it is no error: the run was asked to stop, and has been saved
    """The run was saved and ended by a signal; `status` is the exit status."""

    def __init__(self, number: int):
        self.status = EXIT_STATUS[signal.Signals(number)]
        super().__init__(f"saved and stopped (exit status {self.status})")


class Signals(AbstractContextManager["Signals"]):
    """Notes the first SIGINT or SIGTERM within it; a second one acts as it would without."""

    received = 0

    def __enter__(self) -> Signals:
        self._previous = {number: signal.signal(number, self._note) for number in EXIT_STATUS}
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
