"""The display of work that has several stages."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from ldm_ae.core.terminal import ProgressDisplay

_UNITS = {
    "opening models": "models", "coding as": "rates", "computing scores": "scores", "training": "steps",
    "sampling": "samples", "exploring": "sections",
}  # fmt: skip
"""Units of stages that do not count images, by words in their names."""


class Stages:
    """A progress bar for each stage of the work."""

    def __init__(self) -> None:
        self._text = ""
        self._open = ExitStack()

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def __call__(self, text: str, done: int, total: int) -> None:
        """Show that a stage has done so many of its units."""
        if text != self._text:
            self._open.close()
            self._text = text
            unit = next((unit for words, unit in _UNITS.items() if words in text.rpartition(": ")[2]), "images")
            self._display = self._open.enter_context(
                ProgressDisplay(text, total, unit=unit, images_per_unit=1.0 if unit == "images" else None)
            )
        self._display(done, total)
