"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 10.0
"""Seconds between lines. The documented maximum is 15; a busy machine wakes the printing thread late."""
_SPEED_SECONDS = 20.0
"""Seconds over which the speed is measured."""


class ProgressLines(AbstractContextManager["ProgressLines"]):
    """Progress lines that a thread prints every few seconds, so that output continues during a slow step.

    Args:
        text: The name of the work.
        total: Number of units, None where it is not known yet.
        unit: Name of the units, in the plural.
        images_per_unit: Images in one unit, for the images per second; None for work that is not on images.
        seconds: Seconds between two lines. Shorter work prints none.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        text: str,
        total: int | None,
        *,
        unit: str = "images",
        images_per_unit: float | None = 1.0,
        seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.text, self.total, self.unit, self.images_per_unit = text, total, unit, images_per_unit
        self.done = 0
        self.printed = 0
        self._seconds, self._clock = seconds, clock
        self._started = clock()
        self._updates: deque[tuple[float, int]] = deque()  # times, and the units done by then
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, name="progress", daemon=True)

    def __enter__(self) -> ProgressLines:
        self._started = self._clock()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None and self.printed:
            self._print()

    def update(self, done: int, total: int | None = None) -> None:
        """Record that `done` units are done. The speed is measured from the first call."""
        with self._lock:
            self.done = done
            self.total = self.total if total is None else total
            now = self._clock()
            self._updates.append((now, done))
            # The last older entry stays: a step may take longer than the window.
            while len(self._updates) > 2 and self._updates[1][0] <= now - _SPEED_SECONDS:
                self._updates.popleft()
            # The newest entry replaces one of the same quarter second, so that a million images do not fill the memory.
            if len(self._updates) > 2 and now - self._updates[-3][0] < 0.25:
                del self._updates[-2]

    def line(self) -> str:
        """Return the name, units done of all, images per second, time elapsed and left."""
        with self._lock:
            done, total = self.done, self.total
            (first, before), (last, after) = (
                (self._updates[0], self._updates[-1]) if self._updates else ((0.0, 0), (0.0, 0))
            )
        parts = [f"{self.text}: {done}{'' if total is None else f'/{total}'} {self.unit}"]
        speed = (after - before) / (last - first) if last > first else 0.0
        if speed > 0 and self.images_per_unit is not None:
            parts.append(f"{_digits(speed * self.images_per_unit)} images/s")
        parts.append(f"{duration(self._clock() - self._started)} elapsed")
        if speed > 0 and total is not None:
            parts.append(f"{duration(max(total - done, 0) / speed)} left")
        return ", ".join(parts)

    def _print_lines(self) -> None:
        # The main thread handles signals, and blocks them while workers start.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        while not self._ended.wait(self._seconds):
            self._print()

    def _print(self) -> None:
        self.printed += 1
        sys.stderr.write(f"{self.line()}\n")
        sys.stderr.flush()


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """A bar on a terminal; a line every few seconds in a log, a notebook or CI. Call it with units done and total.

    Args:
        text: The name of the work.
        total: Number of units, None where it is not known yet.
        unit: Name of the units, in the plural.
        images_per_unit: Images in one unit, for the images per second; None for work that is not on images.
        shown: False for a process that displays nothing.
    """

    def __init__(
        self,
        text: str,
        total: int | None,
        *,
        unit: str = "images",
        images_per_unit: float | None = 1.0,
        shown: bool = True,
    ):
        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(
                    "" if speed is None or images_per_unit is None else f"{_digits(speed * images_per_unit)} images/s"
                )

        self.console = Console(stderr=True, quiet=not shown, highlight=False)
        columns = [TextColumn(text), BarColumn(), MofNCompleteColumn(), Speed(), TimeElapsedColumn()]
        self._live = live = shown and _is_terminal(self.console)
        self._bar = Progress(
            *columns, TextColumn("left"), TimeRemainingColumn(), console=self.console, disable=not live
        )
        self._task = self._bar.add_task(text, total=total)
        self._lines = (
            ProgressLines(text, total, unit=unit, images_per_unit=images_per_unit) if shown and not live else None
        )

    def __enter__(self) -> ProgressDisplay:
        if self._live:  # rich 13.0 prints an empty line at the end of a bar that is disabled
            self._bar.start()
        if self._lines is not None:
            self._lines.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if self._live:
            self._bar.stop()
        if self._lines is not None:
            self._lines.__exit__(kind, *details)

    def __call__(self, done: int, total: int | None = None) -> None:
        """Show that `done` units are done; `total` as soon as it is known."""
        self._bar.update(self._task, completed=done, total=total)
        if self._lines is not None:
            self._lines.update(done, total)

    def print_line(self, text: str) -> None:
        """Print a line, above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)


def progress_bar(text: str, total: int | None, *, shown: bool = True) -> ProgressDisplay:
    """Return the display of work that counts images."""
    return ProgressDisplay(text, total, shown=shown)


def lines_of(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Format a tree of JSON values, a line each."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:"
            yield from lines_of(item, indent + "  ")
        elif isinstance(item, list) and key == "problems":
            yield f"{indent}valid: {'no' if item else 'yes'}"
            yield from (f"{indent}  {problem}" for problem in item)
        else:
            yield f"{indent}{key}: {_in_words(item)}"


def _in_words(value: object) -> str:
    """Return a value as people read it: numbers with six digits, yes and no, none."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_in_words, value)) if isinstance(value, list | tuple) else str(value)


def _is_terminal(console: Console) -> bool:
    """Return whether a bar can be redrawn; rich treats a pipe as a terminal where FORCE_COLOR is set, as CI does."""
    return console.is_interactive and sys.stderr.isatty()


def _digits(speed: float) -> str:
    return f"{speed:.1f}" if speed >= 1 else f"{speed:.2g}"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds, such as 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
