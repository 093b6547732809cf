"""Data sets of the `datasets` library: saved folders, Parquet files, names on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_ae.data.decoding import BadImage
from ldm_ae.data.sources.base import RawImage, Source
from ldm_ae.data.sources.folder import image_paths
from ldm_ae.errors import UserError

if TYPE_CHECKING:
    import datasets

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_NAMES = ("label", "labels", "cls")
_CAPTION_NAMES = ("caption", "text")


class HFDatasetsSource(Source):
    """Rows of one split, images as the encoded bytes that the data set holds.

    The image is the one column of the type Image (the one called "image" if there are several), or else a column of
    bytes called image, img, jpg, jpeg, png or webp; the label a ClassLabel or integer column called label, labels or
    cls, where a negative number means none; the caption a text column called caption or text. The key is the split and
    the row number.
    """

    name = "hf_datasets"
    accepts = "a .parquet, a folder of them, a folder saved by `datasets` or hf:owner/name[:split]"

    def __init__(self, data: datasets.Dataset, location: str) -> None:
        """Args: one split, and what to call it in messages."""
        import datasets

        features = data.features
        self._image = _image_column(features, location)
        self._label = next((name for name in _LABEL_NAMES if _is_integer(features.get(name))), None)
        self._caption = next(
            (name for name in _CAPTION_NAMES if getattr(features.get(name), "dtype", "") == "string"), None
        )
        used = [name for name in (self._image, self._label, self._caption) if name is not None]
        if len(data) == 0:
            raise UserError(f"{location} has no rows")
        self._data = data.select_columns(used).cast_column(self._image, datasets.Image(decode=False))
        self._split = "" if data.split is None else f"{data.split}/"

    @classmethod
    def open(cls, location: str) -> HFDatasetsSource | None:
        """See `Source.open`."""
        if location.startswith("hf:"):
            name, _, split = location.removeprefix("hf:").partition(":")
            return cls(_one_split(_load(name, location), split, location, name), location)
        path = Path(location)
        if _is_saved(path) or (path.suffix == ".parquet" and path.is_file()) or _holds_only_parquet(path):
            return cls(_one_split(_load(location, location), "", location, location), location)
        if path.suffix == ".parquet":
            raise UserError(f"no such Parquet file: {location}")
        return None

    def __len__(self) -> int:
        return len(self._data)

    def key(self, index: int) -> str:
        """Split and row."""
        return f"{self._split}{index:08d}"

    def __getitem__(self, index: int) -> RawImage:
        row = self._data[index]
        image = row[self._image] or {}
        data, path = image.get("bytes"), image.get("path")
        if data is None:
            if path is None:
                raise BadImage("there is no image in this row")
            data = Path(path).read_bytes()
        label = row[self._label] if self._label else None
        return RawImage(
            self.key(index),
            data,
            None if label is None or label < 0 else label,
            row[self._caption] if self._caption else None,
        )


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _holds_only_parquet(path: Path) -> bool:
    """Tables beside tars or images are their metadata, and not a data set of their own."""
    if not path.is_dir() or next(path.rglob("*.parquet"), None) is None:
        return False
    return next(path.glob("*.tar"), None) is None and next(image_paths(path), None) is None


def _load(name: str, location: str) -> Any:
    """A `Dataset`, or a dictionary of them by split."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{location} needs the package datasets, which is missing; pip install 'ldm_ae[datasets]'"
        ) from None
    path = Path(name)
    if not path.exists() and name.count("/") > 1:
        raise UserError(f"no such folder or file: {name}, and a data set on the hub is hf:owner/name[:split]")
    try:
        if _is_saved(path):
            return datasets.load_from_disk(name)
        if path.is_dir():
            return datasets.load_dataset("parquet", data_dir=name)
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=name)
        return datasets.load_dataset(name)
    except Exception as error:  # many kinds come out of it; each means that there is no data set
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if path.exists():
            raise UserError(f"{name} cannot be read as a data set: {reason}") from error
        raise UserError(
            f"the data set '{name}' could not be had from the Hugging Face hub: {reason}; "
            "a folder of images, .tar or .parquet files works without a network"
        ) from error


def _one_split(loaded: Any, split: str, location: str, name: str) -> datasets.Dataset:
    if not isinstance(loaded, dict):
        if split and str(loaded.split) != split:
            raise UserError(f"{name} has no splits, so there is no '{split}' in it; leave it out")
        return loaded
    if not split and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        wanted = f"has no split '{split}'" if split else "has several splits"
        raise UserError(f"{location} {wanted}; name one: " + ", ".join(f"hf:{name}:{known}" for known in loaded))
    return loaded[split]


def _image_column(features: Any, location: str) -> str:
    import datasets

    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if "image" in typed or len(typed) == 1:
        return "image" if "image" in typed else typed[0]
    if typed:
        raise UserError(f"{location} has the image columns {', '.join(typed)}; call the one to use 'image'")
    for name in _IMAGE_NAMES:
        feature = features.get(name)
        if getattr(feature, "dtype", "") in ("binary", "large_binary") or (
            isinstance(feature, dict) and "bytes" in feature
        ):
            return name
    raise UserError(f"{location} has no image column; its columns are {', '.join(features)}")


def _is_integer(feature: Any) -> bool:
    return getattr(feature, "dtype", "").startswith(("int", "uint"))  # a ClassLabel's dtype is int64
