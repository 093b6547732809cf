"""Where images come from, one file a kind. A new kind is one new file with a `Source` class in it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

from ldm_ae.data.sources.base import IMAGE_EXTENSIONS, RawImage, Source, Wrapped
from ldm_ae.errors import UserError

__all__ = ["SOURCES", "RawImage", "Source", "Wrapped", "open_source"]


def _find_sources() -> dict[str, type[Source]]:
    """The `Source` classes of this folder's modules by name, in the order in which they are asked (alphabetical)."""
    found: dict[str, type[Source]] = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for item in vars(module).values():
            defined_here = isinstance(item, type) and item.__module__ == module.__name__
            if defined_here and issubclass(item, Source) and not inspect.isabstract(item):
                assert item.name not in found, f"two sources are named {item.name}"
                found[item.name] = item
    return found


SOURCES: dict[str, type[Source]] = _find_sources()


def open_source(location: str | Path) -> Source:
    """The images at `location`.

    `location` is a folder of images (or one image file); one `.tar`, a folder of them, or a pattern such as
    `shards/{000..009}.tar` or `shards/*.tar`; a Parquet file, a folder of them, or a folder that `datasets` saved;
    `hf:owner/name[:split]`; `photos:train` or `photos:heldout`, real photos that come with the `offline` extra.

    Raises:
        UserError: there is nothing of these kinds, or it cannot be read.
    """
    location = str(location)
    opened = [source for kind in SOURCES.values() if (source := kind.open(location)) is not None]
    if len(opened) == 1:
        return opened[0]
    if opened:
        kinds = " and ".join(type(source).accepts for source in opened)
        raise UserError(f"{location} is both {kinds}; name the tars ('{location}/*.tar') or move one of them elsewhere")
    extensions = " ".join(IMAGE_EXTENSIONS)
    if Path(location).is_dir():
        raise UserError(
            f"no images in {location}: no file in it or below ends in one of {extensions},\n"
            "and there are no .tar or .parquet files and no saved data set"
        )
    if Path(location).exists():
        raise UserError(f"{location} is no image file ({extensions}), no .tar and no .parquet")
    raise UserError(
        f"no such folder or file: {location}\nimages may be " + ", ".join(kind.accepts for kind in SOURCES.values())
    )
