"""What all sections of the page have in common, and what a section is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ldm_ae.core.seeding import derive_seed
from ldm_ae.images.views import View
from ldm_ae.priors import SavedPrior


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The choices that every section reads."""

    pictures: int = 4
    """Number of images that a section shows."""
    seed: int = 0
    """Seed of all draws."""
    batch_size: int = 8
    """Latents that are decoded at a time."""
    precision: str = "fp32"
    """Precision of the model."""
    view: View | None = None
    """View by which people see images that are not RGB; None for RGB."""
    prior: SavedPrior | None = None
    """Prior over the model's codes."""

    def generator(self, purpose: str) -> torch.Generator:
        """Return a generator on the CPU for one purpose, the same in every run with this seed."""
        return torch.Generator().manual_seed(derive_seed("explore", purpose, self.seed))


class Fact(NamedTuple):
    """A number for the cards at the top of the page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page and its values."""

    place: str
    """Anchor of the section, and its key in exploration.json."""
    title: str
    content: str
    """HTML. Data in it is escaped."""
    values: dict[str, Any]
    """JSON values."""
    facts: Sequence[Fact] = field(default=())


def absent(place: str, title: str, why: str) -> Section:
    """Return a section that has no meaning for a model or these images, and states why in one sentence.

    Args:
        place: Anchor of the section.
        title: Title.
        why: The sentence, plain text.
    """
    return Section(place=place, title=title, content=f'<p class="absent">{why}</p>', values={"absent": why})


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` of the numbers 0, 1, ... `total` - 1, evenly spread, so that images in an order by class
    give all classes."""
    count = min(total, count)
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]
