"""What commands show on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def progress_bar(text: str, total: int | None, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with images per second and an estimate of the time left, on a terminal."""

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} images/s")

    columns = [TextColumn(text), BarColumn(), MofNCompleteColumn(), Speed(), TimeElapsedColumn(), TextColumn("left")]
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def lines_of(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A tree of JSON values, a line each."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:"
            yield from lines_of(item, indent + "  ")
        elif isinstance(item, list) and key == "problems":
            yield f"{indent}sound: {'no' if item else 'yes'}"
            yield from (f"{indent}  {problem}" for problem in item)
        else:
            yield f"{indent}{key}: {item}"
