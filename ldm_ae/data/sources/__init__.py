"""The kinds of image sources, one file each. To add a kind, add one file with a `Source` class in it."""

from __future__ import annotations

from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import Registry
from ldm_ae.data.account import Account
from ldm_ae.data.sources.interface import IMAGE_EXTENSIONS, RawImage, Source, Wrapped
from ldm_ae.data.sources.parquet import ParquetSource
from ldm_ae.data.sources.tree import Tree

__all__ = ["SOURCES", "RawImage", "Source", "Wrapped", "open_source"]


SOURCES: Registry[Source] = Registry(__name__, Source, "image source", key="name")  # type: ignore[type-abstract]
"""Every kind of source by its name, in the order in which they are tried."""


def open_source(location: str | Path) -> Source:
    """Open the images at `location`.

    `location` is a folder of images (or one image file); one `.tar`, a folder of them, or a pattern such as
    `shards/{000..009}.tar` or `shards/*.tar`; a DICOM or NIfTI file, or a folder of them, whose slices are the images;
    a Parquet file, a folder of them, or a folder that `datasets` saved; `hf:owner/name[:split]`; `photos:train` or
    `photos:heldout`, real photos that come with the `offline` extra; `digits:train` or `digits:test`, digits that come
    with it too; `sprites:N`, shapes of known factors. If a folder can be read in several ways, the prefix `folder:`,
    `tars:`, `parquet:`, `saved:` or `volumes:` selects one.

    Raises:
        UserError: Nothing of these kinds is there, it cannot be read, or it can be read in several ways.
    """
    location = str(location)
    scheme, _, rest = location.partition(":")
    chosen = [kind for kind in SOURCES.values() if kind.scheme and kind.scheme == scheme]
    if chosen and not Path(location).exists():
        location = rest
    kinds = chosen if location == rest else list(SOURCES.values())
    tree = Tree(Path(location)) if Path(location).is_dir() else None
    opened = [source for kind in kinds if (source := kind.open(location, tree)) is not None]
    if len(opened) == 1:
        return opened[0]
    if opened:
        readings = "\n".join(f"  {source.scheme}:{location}   {len(source)} images" for source in opened)
        raise UserError(f"{location} can be read in {len(opened)} ways; choose one by its prefix:\n{readings}")
    if tree is not None:
        if tables := tree.files("parquet"):
            ParquetSource([tree.root / tables[0]], "", location)  # which reports why it is not one
        raise UserError(_nothing(location, tree, chosen))
    if Path(location).exists():
        extensions = " ".join(IMAGE_EXTENSIONS)
        raise UserError(f"{location} is not an image file ({extensions}), a .tar or a .parquet")
    accepted = sorted((kind.accepts for kind in SOURCES.values()), key=lambda words: ":" in words)  # files first
    raise UserError(f"no such folder or file: {location}\nIMAGES must be {', '.join(accepted)}")


def _nothing(location: str, tree: Tree, chosen: list[type[Source]]) -> str:
    """Return why a folder is not a source, and what it contains."""
    account = Account(kind="", images=0)
    tree.describe(account, used=())
    found = "; ".join(f"{group.count} {reason}: {group}" for reason, group in account.passed_over.items())
    what = f"{location} is not {chosen[0].accepts}" if chosen else f"no images in {location}"
    expected = f"expected files that end in one of {' '.join(IMAGE_EXTENSIONS)}, .tar, .parquet or a saved data set"
    return f"{what}: {expected}\n" + (f"it has {found}" if found else "neither it nor any folder in it has one")
