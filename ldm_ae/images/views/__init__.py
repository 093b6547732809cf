"""Views of images that are not RGB, by which networks that know RGB alone see them. A new view is a new file with a
`View` class in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import Registry, export
from ldm_ae.images.views.bands import Bands
from ldm_ae.images.views.choice import default_view, parse_view, sees, shown_view, view_for
from ldm_ae.images.views.composite import BACKGROUNDS, Composite, opaque
from ldm_ae.images.views.interface import View
from ldm_ae.images.views.repeated import Repeated
from ldm_ae.images.views.triples import Triples

__all__ = [
    "BACKGROUNDS",
    "VIEWS",
    "Bands",
    "Composite",
    "Repeated",
    "Triples",
    "View",
    "default_view",
    "opaque",
    "parse_view",
    "sees",
    "shown_view",
    "view_for",
]

VIEWS: Registry[View] = Registry(__name__, View, "view")  # type: ignore[type-abstract]
"""Every view by its name."""

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, VIEWS)
