"""The interface of every trainer's format: a writer of samples, and a declaration of its capabilities."""

from __future__ import annotations

import abc
import importlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_ae.core.errors import UserError, printable
from ldm_ae.data import Source
from ldm_ae.latents.fold import Constants, Fold
from ldm_ae.latents.store.reader import LatentDataset, LatentStore

FLIP = "_flip"
"""Suffix of the name of a mirror image's tensor."""
SUBFOLDER = 1000
"""Number of files per folder, in formats that number them."""


class Sample(NamedTuple):
    """One image of a conversion."""

    number: int
    """Number from 0, in the order in which the trainer reads, if it has one."""
    key: str
    label: int
    """Class label; -1: none."""
    caption: str | None
    size: tuple[int, int]
    """(H, W) of the encoded pixels."""
    original_size: tuple[int, int] | None
    """(height, width) of the image before the transform; None if the store does not record it."""
    tensors: dict[str, Tensor]
    """Float32 and folded: `latents` (C, h, w), `moments` (2C, h, w) mean and log-variance; int64: `indices` (h, w) or
    (Q, h, w); and those of the mirror image under the same names with `_flip`. It has the tensors that the format
    requests and the store holds."""
    index_row: int
    """Row of the store's index."""
    orientation: int | None = None
    """EXIF orientation, 1 to 8, which was undone before `original_size`; None if the store does not hold it."""


class Samples:
    """The images of a conversion, read one at a time.

    Args:
        store: The store that holds them.
        positions: Positions among the store's valid images, in the order in which the trainer reads.
        want: `latents`, `moments`, `indices`, or any with `_flip`; tensors that the store lacks are omitted.
        fold: The map from latents to the values in the file.
        progress: Called with the number of images read and their total.
    """

    def __init__(
        self,
        store: LatentStore,
        positions: NDArray[np.int64],
        *,
        want: Iterable[str],
        fold: Fold,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.store = store
        self.positions = positions
        self.fold = fold
        self.rows: pa.Table = store.good().take(pa.array(positions))
        """The index rows of the images, in their order."""
        self.labels: NDArray[np.int64] = self.rows["label"].to_numpy()
        """(N,) int64 labels, -1 for none."""
        stored = LatentDataset(store)
        self.names = stored.tensor_names
        """Names of the tensors that the store holds."""
        self.flips = store.request.flips
        """Whether the store has mirror images."""
        wanted = [name for name in want if self.flips or not name.endswith(FLIP)]
        self._stored = stored
        self._progress = progress
        self._read = [name for name in wanted if name in self.names]
        # A store of moments alone still yields latents: one draw of each, the same in every conversion.
        self._drawn = [name for name in wanted if name.startswith("latents") and name not in self.names]
        self._draw = LatentDataset(store, draw="sample", seed=store.request.seed) if self._drawn else None

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Sample]:
        number = 0
        for batch in self.rows.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield self._sample(number, row)
                number += 1
                if self._progress is not None:
                    self._progress(number, len(self))

    def _sample(self, number: int, row: dict[str, Any]) -> Sample:
        position = int(self.positions[number])
        found = self._stored.tensors(position, self._read)
        if self._draw is not None:
            found |= {name: self._draw.read(position, flipped=name.endswith(FLIP)) for name in self._drawn}
        height, width = (int(side) for side in row["bucket"].split("x"))
        return Sample(
            number=number, key=row["key"], label=row["label"], caption=row["caption"], size=(height, width),
            original_size=None if row["height"] is None else (row["height"], row["width"]),
            tensors={name: self._folded(name, value) for name, value in found.items()},
            index_row=int(self.store.index_rows[position]), orientation=row["orientation"],
        )  # fmt: skip

    def _folded(self, name: str, value: Tensor) -> Tensor:
        if name.startswith("indices"):
            return value.to(torch.int64)
        return self.fold.fold(value) if name.startswith("latents") else self.fold.fold_moments(value)

    def size(self) -> tuple[int, int]:
        """Return (H, W) of the pixels of all images, in a format that takes one resolution."""
        [bucket] = self.rows["bucket"].unique().to_pylist()
        height, width = (int(side) for side in bucket.split("x"))
        return height, width


class EncodedImages(abc.ABC):
    """The images themselves, for a trainer that needs them beside the latents."""

    @abc.abstractmethod
    def png(self, sample: Sample) -> bytes:
        """Return a PNG file of exactly the encoded pixels.

        Raises:
            UserError: The image is missing, unreadable, or not the encoded one.
        """


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of some formats."""

    arch: str | None = None
    """The diffusion model's architecture, by the trainer's short name."""
    name: str | None = None
    """The autoencoder's name, in the files' names."""
    images: Source | None = None
    """The encoded images."""
    files: Literal["safetensors", "npy"] | None = None
    """The kind of file."""
    no_flips: bool | None = None
    """Whether to omit the mirror images."""


class Foreign(abc.ABC):
    """Latents in a trainer's files, for import into a store."""

    path: Path
    count: int
    channels: int
    latent_size: tuple[int, int]
    """(h, w) of the latents."""
    names: frozenset[str]
    """Names of the tensors that `chunks` yields besides labels: `latents`, `moments`, and either with `_flip`."""
    dtype: str
    """Dtype: fp32, fp16 or bf16."""
    has_own_pixels: bool
    """Whether the trainer's own autoencoder takes pixels of another range than [-1, 1]."""

    @abc.abstractmethod
    def described(self) -> tuple[bytes | None, bytes | None]:
        """Return the two files that our conversion writes, metadata and index; None for a missing file."""

    @abc.abstractmethod
    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield up to `size` samples at a time in the trainer's order: `names` as stored, (N, C, h, w) or (N, 2C, h, w)
        with log-variances, and `labels` (N,) int64."""


class Format(abc.ABC):
    """A trainer's format. A subclass in a file of this folder is found by its name.

    Class attributes declare what the format holds; `convert` refuses, or warns of, a store that does not fit, so that
    `write` receives only samples that fit.

    Args:
        options: The user's options; only those named in `takes`.

    Raises:
        UserError: An option has no effect in this format, or a required one is missing.
    """

    name: ClassVar[str]
    trainer: ClassVar[str]
    """Name of the trainer, for messages."""
    tensors: ClassVar[tuple[str, ...]]
    """Tensors of each sample: `latents`, `moments`, `indices`, and any with `_flip`."""
    needs_flips: ClassVar[bool] = False
    """Whether the reader fails without mirror images; flips in `tensors` that are not needed are optional."""
    needs_labels: ClassVar[bool] = False
    needs_captions: ClassVar[bool] = False
    needs_original_size: ClassVar[bool] = False
    several_sizes: ClassVar[bool] = False
    """Whether images of several resolutions fit into one data set."""
    square: ClassVar[bool] = False
    """Whether the reader takes latents with h = w only."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Names of `Options` that have an effect in this format."""
    suffix: ClassVar[str] = ""
    """Suffix of the format's single file; empty for a folder."""
    normalizes: ClassVar[bool] = False
    """Whether the files hold mean and standard deviation, so that no folding is needed."""

    channels: int | None = None
    """C for which the trainer's code is written; None for any."""
    scaled: bool = False
    """Whether the file holds scaled latents, so that the trainer has no constant."""
    constants: Constants | None = None
    """The constants hard-coded in the trainer."""

    def __init__(self, options: Options):
        for field in fields(options):
            if getattr(options, field.name) is not None and field.name not in self.takes:
                option = field.name.replace("_", "-")
                raise UserError(f"--{option} has no effect in the format {self.name}; remove it")
        if "images" in self.takes and options.images is None:
            raise UserError(f"{self.trainer} also reads the images; give them with --images IMAGES")
        self.options = options

    @property
    def reads_latents(self) -> bool:
        """Return whether the trainer needs latents, or moments to draw them from; otherwise it needs indices."""
        return not any(tensor.startswith("indices") for tensor in self.tensors)

    def arrange(self, rows: pa.Table) -> NDArray[np.int64]:
        """Return (N,) int64, the order in which the reader gets these rows of the store's index; it may omit some."""
        return np.arange(len(rows), dtype=np.int64)

    def check(self, samples: Samples) -> Iterator[str]:  # noqa: ARG002 - most formats have nothing to add
        """Yield one-line warnings about aspects that the attributes do not cover.

        Raises:
            UserError: The format cannot hold these samples.
        """
        yield from ()

    def metadata(self, samples: Samples) -> dict[str, Any]:  # noqa: ARG002 - most formats have nothing to add
        """Return the format's additions to the metadata, as JSON values."""
        return {}

    @abc.abstractmethod
    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:
        """Write all samples.

        Args:
            samples: The samples, to be iterated over once.
            out: An empty folder, or with `suffix` a file that does not exist yet.
            images: The encoded images, if the format takes them.
        """

    @classmethod
    def open_foreign(cls, path: Path) -> Foreign | None:  # noqa: ARG003 - most formats are only written
        """Return the latents at `path` if they have this format and it can be read back, else None.

        Raises:
            UserError: They have this format, and are damaged.
        """
        return None


class ClassFolders(Format):
    """A folder for each class; torchvision's `DatasetFolder` numbers them from 0 in their order."""

    needs_labels = True

    @abc.abstractmethod
    def write_sample(self, sample: Sample, path: Path) -> None:
        """Write the file of a sample; `path` has no extension."""

    def check(self, samples: Samples) -> Iterator[str]:
        """Yield a warning if the numbers of the folders are not the labels."""
        classes = np.unique(samples.labels)
        if not np.array_equal(classes, np.arange(len(classes))):
            yield (
                f"the {len(classes)} labels are not 0 to {len(classes) - 1}; {self.trainer} numbers the class folders "
                "from 0, so its labels will differ"
            )

    def metadata(self, samples: Samples) -> dict[str, Any]:
        """Return the label of each folder."""
        return {"labels": np.unique(samples.labels).tolist()}

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        digits = max(4, len(str(int(samples.labels.max()))))  # so that sorting by name sorts by number
        for sample in samples:
            folder = out / f"{sample.label:0{digits}d}"
            folder.mkdir(exist_ok=True)
            self.write_sample(sample, folder / f"{sample.number:08d}")


def architecture(format_name: str, arch: str | None, known: Iterable[str]) -> str:
    """Return `arch` if it is known; else raise a `UserError` that lists the known ones."""
    if arch is None or arch not in known:
        said = "needs --arch" if arch is None else f"does not support --arch {arch}"
        raise UserError(f"the format {format_name} {said}: one of {', '.join(known)}")
    return arch


def library(module: str, format_name: str) -> Any:
    """Import an optional package; if it is missing, raise a `UserError` that explains how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"the format {format_name} needs the package {module}, which is missing; pip install 'ldm_ae[formats]'"
        ) from None


def mean_and_std(moments: Tensor) -> NDArray[np.float32]:
    """Return (2C, h, w) mean and standard deviation for mean and log-variance."""
    mean, log_variance = moments.chunk(2, dim=0)
    return torch.cat([mean, torch.exp(0.5 * log_variance)], dim=0).numpy()


def npy(values: NDArray[Any]) -> bytes:
    """Return the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def numbered(number: int, prefix: str, extension: str) -> str:
    """Return a name in EDM2's scheme, sorted by number: 00001/img00001234.png."""
    return f"{number // SUBFOLDER:05d}/{prefix}{number:08d}.{extension}"


def write_labels(file: IO[bytes], samples: Samples, prefix: str, extension: str) -> None:
    """Write EDM2's dataset.json: a [name, label] for each sample, or null if none has a label."""
    labels = samples.labels
    if (labels < 0).all():
        file.write(b'{"labels": null}\n')
        return
    assert (labels >= 0).all(), "all labels exist or none does"
    for number, label in enumerate(labels.tolist()):
        start = '{"labels": [\n' if number == 0 else ",\n"
        file.write(f"{start}{json.dumps([numbered(number, prefix, extension), label])}".encode())
    file.write(b"\n]}\n")


def file_name(name: str) -> str:
    """Return `name` if it can be part of a file's name; else raise a `UserError`."""
    if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
        raise UserError(f"'{name}' cannot be part of a file's name")
    return name


def write_new(path: Path, content: bytes, key: str) -> None:
    """Write a file that must not exist yet.

    Raises:
        UserError: Another image already has this file name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(
            f"two images would be {printable(path.name)} in this format; the second is {printable(key)}"
        ) from None
