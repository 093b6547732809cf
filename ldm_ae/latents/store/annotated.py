"""The labels and captions of a store: their number, and the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ldm_ae.core.errors import UserError
from ldm_ae.data.texts import BadText, check_names, decode_json, decode_text
from ldm_ae.latents.store.format import CLASSES

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class AnnotationCount:
    """The number of captions and labels of a store's valid images."""

    images: int
    captions: int
    labels: int
    unusable: dict[str, str]
    """The reason that an image's caption or label is not used, by the image's key."""

    def lines(self) -> list[str]:
        """Return lines for the end of a command; an empty list if there is nothing to report."""
        found = [f"{self.captions} of {self.images} images have a caption, {self.labels} a label"]
        if self.unusable:
            shown = "; ".join(f"{key}: {why}" for key, why in islice(self.unusable.items(), _SHOWN))
            found.append(f"captions or labels of {len(self.unusable)} images cannot be used: {shown}")
        return found


def count_annotations(good: pa.Table) -> AnnotationCount:
    """Count the captions and labels in the index rows of valid images."""
    noted = good.filter(pc.is_valid(good["error"]))
    return AnnotationCount(
        images=len(good),
        captions=len(good) - good["caption"].null_count,
        labels=int(pc.sum(pc.greater_equal(good["label"], 0)).as_py() or 0),
        unusable=dict(zip(noted["key"].to_pylist(), noted["error"].to_pylist(), strict=True)),
    )


def read_classes(path: str | Path) -> list[str]:
    """Read the names of the classes 0, 1, ...

    Args:
        path: A store; or JSON, a list of names or an object from names to numbers; or a text file with a name per line.

    Raises:
        UserError: The file cannot be read, or has other content.
    """
    path = Path(path)
    path = path / CLASSES if path.is_dir() else path
    try:
        data = path.read_bytes()
        found: Any = decode_json(data) if path.suffix.lower() == ".json" else decode_text(data).splitlines()
        if isinstance(found, dict):
            numbers = list(found.values())
            if sorted(map(str, numbers)) != sorted(map(str, range(len(found)))):
                raise BadText(f"its numbers are not 0 to {len(found) - 1} without duplicates")
            found = sorted(found, key=lambda name: int(found[name]))
        return check_names(found)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except BadText as error:
        raise UserError(f"{path} is not a file of classes: {error}") from error


def numbering_warnings(store: Path, classes: Sequence[str]) -> list[str]:
    """Return one line for each store beside this one that numbers classes of the same names in another way."""
    numbers = {name: number for number, name in enumerate(classes)}
    warnings = []
    for file in sorted(store.resolve().parent.glob(f"*/{CLASSES}")):
        if file.parent == store.resolve():
            continue
        try:
            others = read_classes(file)
        except UserError:  # An unrelated file of this name.
            continue
        different = [name for number, name in enumerate(others) if numbers.get(name, number) != number]
        if different:
            name = different[0]
            warnings.append(
                f"class {name} is number {numbers[name]} here and {others.index(name)} in {file.parent}; "
                f"--classes {file} gives both the same numbers"
            )
    return warnings
