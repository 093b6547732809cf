"""EDM2 (NVlabs/edm2, `ImageFolderDataset` and `StabilityVAEEncoder`).

    OUT.zip, not compressed
        {i // 1000:05d}/img-mean-std-{i:08d}.npy    (2C, h, w) float32: mean and standard deviation of unscaled latents
        dataset.json                                {"labels": [[name, int], ...]} or {"labels": null}

All samples have one shape. EDM2's own encoder gives its autoencoder pixels in [0, 1] and scales with constants measured
there; ours come from pixels in [-1, 1], which the metadata records. `--fold trainer` makes the constants right for
these latents; EDM2's images during training, decoded with Stable Diffusion's autoencoder, do not show these latents.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.latents.conversion.output import INDEX_FILE, METADATA, member
from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import (
    EncodedImages,
    Foreign,
    Format,
    Samples,
    mean_and_std,
    npy,
    numbered,
    write_labels,
)

PREFIX = "img-mean-std-"


class EDM2Zip(Format):
    """One ZIP file of means and standard deviations."""

    name = "edm2-zip"
    trainer = "EDM2"
    tensors = ("moments",)
    square = True
    suffix = ".zip"
    channels = 4
    # EDM2's latents have a standard deviation of 0.5, which is part of its noise schedule and is left to it.
    constants = Constants(
        factor=tuple(1 / std for std in (4.17, 4.62, 3.71, 3.28)), shift=(5.81, 3.25, 0.12, -2.15)
    )  # fmt: skip

    def check(self, samples: Samples) -> Iterator[str]:
        """See `Format.check`."""
        missing = samples.labels < 0
        if missing.any() and not missing.all():
            key = samples.rows["key"][int(missing.argmax())].as_py()
            raise UserError(f"EDM2 requires labels for all images or for none; {key} has none, others have one")
        yield from ()

    def metadata(self, samples: Samples) -> dict[str, Any]:  # noqa: ARG002
        """See `Format.metadata`."""
        return {"note": "EDM2's own encoder takes pixels in [0, 1]; these latents were encoded from pixels in [-1, 1]"}

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for sample in samples:
                content = npy(mean_and_std(sample.tensors["moments"]))
                archive.writestr(member(numbered(sample.number, PREFIX, "npy")), content)
            with archive.open(member("dataset.json"), "w", force_zip64=True) as file:
                write_labels(file, samples, PREFIX, "npy")

    @classmethod
    def open_foreign(cls, path: Path) -> Foreign | None:
        """See `Format.open_foreign`."""
        if path.suffix.lower() == ".zip" and path.is_file():
            return _EDM2Archive(path)
        if path.is_dir() and next(path.glob(f"*/{PREFIX}*.npy"), None) is not None:
            return _EDM2Archive(path)
        return None


class _EDM2Archive(Foreign):
    """External latents in EDM2's ZIP file, or in a folder that it was unpacked into."""

    names = frozenset({"moments"})
    dtype = "fp32"
    has_own_pixels = True

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path) if path.is_file() else None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} is not a valid ZIP file: {error}") from error
        if self._zip is not None:
            found = self._zip.namelist()
        else:
            found = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        self._members = sorted(name for name in found if name.endswith(".npy"))
        if not self._members:
            raise UserError(f"{path} is not a data set of EDM2's latents: it has no .npy files")
        self.count = len(self._members)
        first = self._load(self._members[0])
        self.channels = first.shape[0] // 2
        self.latent_size = (first.shape[1], first.shape[2])
        self._labels = self._read_labels()

    def _bytes(self, name: str) -> bytes | None:
        """Return a member's content; None if it does not exist."""
        try:
            return (self.path / name).read_bytes() if self._zip is None else self._zip.read(name)
        except (KeyError, FileNotFoundError):
            return None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{self.path}: {name} cannot be read: {error}") from error

    def _load(self, name: str) -> NDArray[np.float32]:
        try:
            values = np.load(io.BytesIO(self._bytes(name) or b""), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{self.path}: {name} is not an array: {error}") from error
        if values.ndim != 3 or values.shape[0] % 2 or values.dtype.kind != "f":
            raise UserError(
                f"{self.path}: {name} is {values.dtype} {values.shape}, not (2C, h, w) of mean and standard deviation"
            )
        return values.astype(np.float32)

    def _read_labels(self) -> dict[str, int] | None:
        content = self._bytes("dataset.json")
        try:
            labels = None if content is None else json.loads(content)["labels"]
            if labels is None:
                return None
            return {name: _integer(label) for name, label in labels}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: dataset.json does not give each name a class: {error}") from error

    def described(self) -> tuple[bytes | None, bytes | None]:
        """See `Foreign.described`."""
        return self._bytes(METADATA), self._bytes(INDEX_FILE)

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """See `Foreign.chunks`."""
        for start in range(0, self.count, size):
            names = self._members[start : start + size]
            yield {
                "moments": torch.stack([self._moments(name) for name in names]),
                "labels": torch.tensor([self._label(name) for name in names], dtype=torch.int64),
            }

    def _moments(self, name: str) -> Tensor:
        values = self._load(name)
        if values.shape != (2 * self.channels, *self.latent_size):
            raise UserError(f"{self.path}: {name} is {values.shape}, unlike {self._members[0]}")
        mean, std = torch.from_numpy(values).chunk(2, dim=0)
        # The store clamps log-variances to [-30, 20], so it holds no standard deviation below exp(-15).
        return torch.cat([mean, (2 * std.log()).clamp(-30.0, 20.0)], dim=0)

    def _label(self, name: str) -> int:
        if self._labels is None:
            return -1
        if name not in self._labels:
            raise UserError(f"{self.path}: dataset.json has no label for {name}")
        return self._labels[name]


def _integer(label: object) -> int:
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise ValueError(f"a label is {label!r}, not a class number")
    return label
