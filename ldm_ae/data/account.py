"""The account of a source: what it uses, what it skips and why, and where captions and labels come from.

No file that looks like an image, a caption or a label is skipped silently: everything unused is counted here, with its
reason and the first names. Commands print `lines`, and a store keeps `to_json` in its index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ldm_ae.core.errors import printable

_EXAMPLES = 3
_CLASSES_SHOWN = 8
_LONGEST = 2000
"""Maximum characters of a line."""


@dataclass
class Group:
    """Number of items of one kind, and the names of the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more item."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(printable(name))

    def __str__(self) -> str:
        return f"{', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''}"


@dataclass(kw_only=True)
class Account:
    """Properties of a source that are available once it is open; no image has been decoded."""

    kind: str
    """Kind of the source, such as `folder`."""
    images: int
    passed_over: dict[str, Group] = field(default_factory=dict)
    """Unused files, by the reason."""
    captions: dict[str, int] = field(default_factory=dict)
    """Number of images that may have a caption, by the caption's origin."""
    labels: dict[str, int] = field(default_factory=dict)
    """Number of images that may have a label, by the label's origin."""
    classes: list[str] = field(default_factory=list)
    """Names of labels 0, 1, ..., if they have names."""
    unmatched: dict[str, Group] = field(default_factory=dict)
    """Captions and labels that belong to no image, by their location."""
    unusable: dict[str, Group] = field(default_factory=dict)
    """Captions and labels of tables that cannot be used, by the reason."""
    notes: list[str] = field(default_factory=list)
    """Other notes for the user."""

    def add_skipped(self, reason: str, name: str) -> None:
        """Count an unused file."""
        self.passed_over.setdefault(printable(reason), Group()).add(name)

    def remove_skipped(self, reason: str, path: str) -> None:
        """Stop counting the file at `path` if it is among the first names of those skipped for this reason."""
        group = self.passed_over.get(reason, Group())
        for name in [name for name in group.examples if f"/{path}".endswith(f"/{name}")]:
            group.examples.remove(name)
            group.count -= 1
        if not group.count:
            self.passed_over.pop(reason, None)

    def add_unmatched(self, place: str, names: Iterable[str]) -> None:
        """Count captions or labels that belong to no image."""
        for name in names:
            self.unmatched.setdefault(printable(place), Group()).add(name)

    def lines(self) -> list[str]:
        """Return a line for each fact that concerns the user."""
        found = [f"source: {self.images} images ({self.kind})"]
        for what, places in (("captions", self.captions), ("labels", self.labels)):
            if places:
                found.append(f"{what} from " + ", ".join(f"{place}: {count}" for place, count in places.items()))
        if self.classes:
            shown = ", ".join(
                f"{number} {printable(name)}" for number, name in enumerate(self.classes[:_CLASSES_SHOWN])
            )
            more = f", ... ({len(self.classes)} classes)" if len(self.classes) > _CLASSES_SHOWN else ""
            found.append(f"classes: {shown}{more}")
        return [printable(line, _LONGEST) for line in found] + self.concerns()

    def concerns(self) -> list[str]:
        """Return the lines about unused items."""
        found = [f"skipped: {group.count} {reason}: {group}" for reason, group in self.passed_over.items()]
        found += [
            f"{place}: {group.count} {'belongs' if group.count == 1 else 'belong'} to no image: {group}"
            for place, group in self.unmatched.items()
        ]
        found += [f"not usable: {group.count} {reason}: {group}" for reason, group in self.unusable.items()]
        found += [f"note: {note}" for note in self.notes]
        return [printable(line, _LONGEST) for line in found]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without empty entries."""
        return {name: value for name, value in asdict(self).items() if value not in ({}, [])}
