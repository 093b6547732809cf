"""What an exploration found, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError
from ldm_ae.exploration.page import render
from ldm_ae.exploration.settings import Section
from ldm_ae.io.files import make_folder, write_json, writing

PAGE, VALUES = "explore.html", "exploration.json"
EXPLORATION_FILES = (PAGE, VALUES)
"""The files that `Exploration.write` writes."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Exploration:
    """The sections of the page, and the protocol under which they were made."""

    sections: Sequence[Section]
    protocol: dict[str, Any]
    page: Path | None = None
    """The written explore.html, if a folder was given."""

    @property
    def values(self) -> dict[str, Any]:
        """The content of exploration.json: the protocol, and the values of each section by its place on the page."""
        return {"protocol": self.protocol, **{section.place: section.values for section in self.sections}}

    def write(self, folder: str | Path) -> Path:
        """Write explore.html and exploration.json into a folder, which is created if necessary; return the page's path.

        Raises:
            UserError: The folder cannot be written to.
        """
        folder = make_folder(folder)
        try:
            write_json(folder / VALUES, self.values)
            with writing(folder / PAGE) as temporary:
                temporary.write_text(render(self.sections, self.protocol), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the page to {folder}: {error.strerror}") from error
        return folder / PAGE

    def lines(self) -> list[str]:
        """Return the main numbers, a line each, for a terminal."""
        facts = [fact for section in self.sections for fact in section.facts]
        return [f"{fact.label}: {fact.value}{f' ({fact.note})' if fact.note else ''}" for fact in facts]

    def __repr__(self) -> str:
        return "\n".join(self.lines())
