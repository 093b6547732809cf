"""Reading a latent store: opening it, and the data set for trainers."""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ldm_ae.core.errors import UserError, reason
from ldm_ae.core.seeding import derive_seed, seeded_noise
from ldm_ae.core.shipped import other_model
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.io.files import read_json
from ldm_ae.latents.store.annotated import AnnotationCount, count_annotations, read_classes
from ldm_ae.latents.store.files import look_at
from ldm_ae.latents.store.format import (
    ACCOUNT,
    BUCKET_NAME,
    CLASSES,
    DESCRIPTION,
    DTYPES,
    INDEX,
    SHARD_NAME,
    STATISTICS,
    StoreRequest,
    complete_columns,
    read_description,
    read_request,
)
from ldm_ae.latents.store.provenance import read_scaling
from ldm_ae.latents.store.quantize_uint8 import dequantize_uint8
from ldm_ae.models import Autoencoder, ChannelStatistics, GaussianPosterior, LatentSpec, model_hash
from ldm_ae.models.stored_rows import SCALE, row_of_tensor

_OPEN_FILES = 8192
"""Maximum number of open shards. Each is a memory map and not a file descriptor; Linux allows a process 65,530 maps."""


class LatentStore:
    """A complete store, opened for reading; none of the latents is read yet.

    Args:
        path: The store's folder.

    Raises:
        UserError: There is no store, it is unfinished, has another version, or has a damaged description or index.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        description = read_description(self.path)
        if description.get("files") is None:
            raise UserError(f"{self.path} is not complete; rerun the command that made it")
        self.files: dict[str, dict[str, Any]] = description["files"]
        """sha256 and size of each file by its path in the store."""
        self.fp32_fallbacks: int = description.get("redone_batches", 0)
        """Number of batches that overflowed in `request.precision` and were encoded in float32."""
        self.redone_by_file: dict[str, int] = description.get("redone_by_file", {})
        """The same number by shard, for shards that have any."""
        self.classes: list[str] = read_classes(self.path) if CLASSES in self.files else []
        """The names of the labels 0, 1, ..., if they have names."""
        try:
            self.request: StoreRequest = read_request(description["request"])
            self.spec: LatentSpec = read_scaling(self.request.scaling)
            if self.request.indices and self.spec.codebook_size is None:
                raise ValueError("it has indices, but its model has no codebook")
            for name in (STATISTICS, INDEX):  # Only files that the writer wrote are parsed.
                if look_at(self.path / name)._asdict() != self.files.get(name):
                    raise ValueError(f"{name} is damaged: its content has changed")
            self.statistics = ChannelStatistics.from_state(read_json(self.path / STATISTICS)["state"])
            if len(self.statistics.channel_mean) != self.spec.channels:
                raise ValueError(f"{STATISTICS} has a different number of channels than {DESCRIPTION}")
            self.index: pa.Table = complete_columns(pq.read_table(self.path / INDEX))
            self.index.validate(full=True)
            good = pc.equal(self.index["status"], "ok")
            self._rows = self.index.filter(good)
            _check_rows(self._rows)
        except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
            files = f"{DESCRIPTION}, {STATISTICS} or {INDEX}"
            raise UserError(f"{self.path} is damaged ({files}): {reason(error)}") from error
        self.index_rows: NDArray[np.int64] = np.flatnonzero(good.to_numpy())
        """(N,) int64: the index row of each valid image."""

    def __len__(self) -> int:
        """Return the number of valid images."""
        return int(self._rows.num_rows)

    def good(self) -> pa.Table:
        """Return the index rows of valid images, in the order of the source."""
        return self._rows

    def buckets(self) -> dict[str, int]:
        """Return the number of valid images by HxW of the pixels, in the order of their areas."""
        found = Counter(self._rows["bucket"].to_pylist())
        return {bucket: found[bucket] for bucket in sorted(found, key=lambda name: (_area(name), name))}

    def account(self) -> dict[str, Any] | None:
        """Return the files that the source used and skipped when the index was written; None if not recorded."""
        account = (self.index.schema.metadata or {}).get(ACCOUNT)
        return None if account is None else json.loads(account)

    def annotations(self) -> AnnotationCount:
        """Return the number of captions and labels of the valid images."""
        return count_annotations(self._rows)

    def bad(self) -> dict[str, str]:
        """Return the reasons by key for the images that could not be used."""
        bad = self.index.filter(pc.equal(self.index["status"], "bad"))
        return dict(zip(bad["key"].to_pylist(), bad["error"].to_pylist(), strict=True))

    def colour_profiles(self) -> dict[str, int]:
        """Return how many valid images were converted to sRGB from each profile, or have one that was not applied."""
        return dict(Counter(self._rows["colour_profile"].drop_null().to_pylist()).most_common())

    def indices(self) -> Iterator[Tensor]:
        """Yield the valid images' indices, (N, h, w) or (N, Q, h, w) int64, by shard; the store must hold indices.

        Raises:
            UserError: A shard cannot be read, or holds an index without a code.
        """
        names = pc.binary_join_element_wise(self._rows["bucket"], self._rows["shard"], "/")
        for name in names.unique().to_pylist():
            try:
                with safe_open(self.path / name, framework="pt") as file:
                    found = file.get_tensor("indices").to(torch.int64)
                if int(found.min()) < 0 or int(found.max()) >= (self.spec.codebook_size or 0):
                    raise ValueError(f"it has indices outside [0, {self.spec.codebook_size})")
            except (SafetensorError, OSError, RuntimeError, ValueError) as error:
                raise UserError(f"{self.path / name} cannot be read: {reason(error)}") from error
            yield found

    def check_model(self, model: Autoencoder) -> None:
        """Raise `UserError` unless this model made the latents, of images with the same stored values."""
        transform = self.request.transform
        if "version" in transform:  # an imported store does not record its images
            model.pixel_spec.require_match(PixelSpec.from_json(transform.get("pixels", "rgb")), str(self.path))
        if (given := model_hash(model)) != self.request.model_hash:
            raise other_model(f"{self.path} was made by", self.request.model_hash, given)


def _area(bucket: str) -> int:
    height, width = (int(side) for side in bucket.split("x"))
    return height * width


def _check_rows(rows: pa.Table) -> None:
    """Raise `ValueError` unless every valid row names a place in a store, and nothing outside of it."""
    if any(rows[name].null_count for name in ("key", "bucket", "shard", "row", "label")):
        raise ValueError("the index has no bucket, shard or row for a valid image")
    for name, pattern in (("bucket", BUCKET_NAME), ("shard", SHARD_NAME)):
        if bad := [value for value in rows[name].unique().to_pylist() if not pattern.fullmatch(value)]:
            raise ValueError(f"the index names {name} {bad[0]!r}")
    if len(rows) and pc.min(rows["row"]).as_py() < 0:
        raise ValueError("the index names a row below 0")


class _Shard(NamedTuple):
    """An open shard file."""

    handle: Any
    tensors: dict[str, Tensor]
    """The requested tensors, whose memory is the file."""


class LatentDataset(Dataset[dict[str, Any]]):
    """A map-style data set over the valid images of a store, for any trainer.

    An item is a dict: `latents` (C, h, w) float32, or `indices` (h, w) or (Q, h, w) int64 in their place, `label` int
    (-1: none), `key` str. Only the bytes of that item are read. Pass it to a `DataLoader` as it is, with a
    `BucketBatchSampler` if the store has several resolutions; each worker opens the files itself.

    Args:
        store: A store or its folder.
        draw: `stored` returns the stored `latents`, `sample` draws from the moments anew in every epoch, `mode` is the
            moments' mean, `indices` the codes of a discrete model.
        flip: `never`, or `half` for the mirror image in place of the image half of the time.
        seed: Seed of draws and flips; an item is a function of (seed, epoch, position of the item) alone.
        spec: Scales the latents for a diffusion model, `autoencoder.latent_spec` or `store.spec`; None leaves them
            unscaled.

    Raises:
        UserError: The store is not valid, has no mirror images, or lacks the tensors to draw from.
    """

    def __init__(
        self,
        store: LatentStore | str | Path,
        *,
        draw: Literal["stored", "sample", "mode", "indices"] = "stored",
        flip: Literal["never", "half"] = "never",
        seed: int = 0,
        spec: LatentSpec | None = None,
    ):
        self.store = store if isinstance(store, LatentStore) else LatentStore(store)
        if draw not in ("stored", "sample", "mode", "indices"):
            raise UserError(f"draw is '{draw}'; it must be stored, sample, mode or indices")
        if flip not in ("never", "half"):
            raise UserError(f"flip is '{flip}'; it must be never or half")
        if flip == "half" and not self.store.request.flips:
            raise UserError(f"{self.store.path} has no mirror images; encode with --flips, or use flip never")
        self._draw = draw
        self._flip = flip
        self._seed = seed
        self._spec = spec
        self._epoch = 0
        rows = self.store.good()
        buckets = rows["bucket"].combine_chunks().dictionary_encode()
        self._bucket_names: list[str] = buckets.dictionary.to_pylist()
        self._bucket_of: NDArray[np.int32] = buckets.indices.to_numpy().astype(np.int32)
        names = pc.binary_join_element_wise(rows["bucket"], rows["shard"], "/").combine_chunks().dictionary_encode()
        self._files: list[str] = names.dictionary.to_pylist()
        self._file_of: NDArray[np.int32] = names.indices.to_numpy().astype(np.int32)
        self._row_of: NDArray[np.int32] = rows["row"].to_numpy().astype(np.int32)
        self.labels: NDArray[np.int64] = rows["label"].to_numpy()
        """(N,) int64 class of each item; -1 for none."""
        self._keys = rows["key"].combine_chunks()
        self._dtype = DTYPES[self.store.request.dtype]
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        self._owner = os.getpid()
        if draw == "indices" and not self.store.request.indices:
            raise UserError(f"{self.store.path} holds no indices; encode with a discrete model, not --store samples")
        if draw == "indices" and spec is not None:
            raise UserError("indices are not scaled; remove spec, or draw latents")
        if draw in ("sample", "mode") and "moments" not in self.tensor_names:
            other = "indices" if self.store.request.indices_alone else "stored"
            why = " (its model has no posterior)" if self.store.request.deterministic else ""
            raise UserError(f"{self.store.path} has no moments to draw from{why}; use draw {other}")

    @property
    def tensor_names(self) -> frozenset[str]:
        """Return the names of the tensors that the shards hold."""
        try:
            return frozenset(self._shard(self._files[0]).handle.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.store.path / self._files[0]} cannot be read: {str(error)[:120]}") from error

    def tensors(self, position: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors of an item by name: (C, h, w) latents, (2C, h, w) moments, and so on; as stored, or float32 if
        they are stored as uint8."""
        return {name: self._slice(position, name)[0] for name in names}

    def buckets(self) -> dict[str, NDArray[np.int64]]:
        """Return the (N,) positions of the items by HxW of the pixels, in the order of the sizes' areas."""
        names = self._bucket_names
        return {name: np.flatnonzero(self._bucket_of == names.index(name)) for name in self.store.buckets()}

    def set_epoch(self, epoch: int) -> None:
        """Change the draws and flips to those of this epoch; call it before the loader's workers start."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._row_of)

    def __getitem__(self, position: int) -> dict[str, Any]:
        flipped = False
        if self._flip == "half":
            flipped = derive_seed(self._seed, self._epoch, position, "flip") % 2 == 1
        values = self.read(position, flipped=flipped)
        if self._spec is not None:
            values = self._spec.scale(values[None])[0]
        kind = "indices" if self._draw == "indices" else "latents"
        return {kind: values, "label": int(self.labels[position]), "key": self._keys[position].as_py()}

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        """Return the items of a batch; raise `UserError` if they have several resolutions."""
        if len(self._bucket_names) > 1 and len(found := np.unique(self._bucket_of[positions])) > 1:
            names = " and ".join(self._bucket_names[bucket] for bucket in found[:2])
            raise UserError(
                f"a batch holds images of {names}; give the DataLoader a batch_sampler: "
                "ldm_ae.latents.BucketBatchSampler(data, batch_size)"
            )
        return [self[position] for position in positions]

    def read(self, position: int, *, flipped: bool = False) -> Tensor:
        """Return the latents of an item or of its mirror image, (C, h, w) float32, unscaled; or its indices, int64."""
        suffix = "_flip" if flipped else ""
        if self._draw == "indices":
            return self._slice(position, f"indices{suffix}")[0].to(torch.int64)
        if self._draw == "stored":
            if self.store.request.indices_alone:
                raise UserError(
                    f"{self.store.path} holds indices, no latents; use draw indices, and look them up with the model"
                )
            if self.store.request.content == "lean":
                raise UserError(f"{self.store.path} holds moments, no samples; use draw sample or mode")
            return self._slice(position, f"latents{suffix}")[0].float()
        posterior = GaussianPosterior(self._slice(position, f"moments{suffix}"))
        if self._draw == "mode":
            return posterior.mode()[0]
        seed = torch.tensor([derive_seed(self._seed, self._epoch, position, f"noise{suffix}")])
        return posterior.sample(noise=seeded_noise(seed, tuple(posterior.mean.shape[1:])))[0]

    def _slice(self, position: int, name: str) -> Tensor:
        """Return one row of a shard's tensor, (1, ...), in the stored dtype, or float32 if that is uint8."""
        if self.store.request.dtype == "uint8" and name.startswith(("latents", "moments")):
            return dequantize_uint8(self._row(position, name), self._row(position, f"{name}{SCALE}"))
        return self._row(position, name)

    def _row(self, position: int, name: str) -> Tensor:
        """Return a copy of one row of a shard's tensor, (1, ...), as stored."""
        row = int(self._row_of[position])
        file = self._files[self._file_of[position]]
        try:
            tensor = self._tensor(file, name)
            if row >= len(tensor):
                raise ValueError(f"it has {len(tensor)} rows")
            return tensor[row : row + 1].clone()
        except (SafetensorError, OSError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.store.path / file} cannot be read ({name}, row {row}): {reason(error)}") from error

    def _tensor(self, file: str, name: str) -> Tensor:
        """Return a shard's whole tensor, memory-mapped and checked on first access; nothing is read yet."""
        shard = self._shard(file)
        if name not in shard.tensors:
            tensor: Tensor = shard.handle.get_tensor(name)
            shape, dtype = row_of_tensor(name, file.partition("/")[0], self.store.spec, self._dtype)
            if tensor.shape[1:] != shape or tensor.dtype != dtype:
                raise ValueError(f"its rows are {tuple(tensor.shape[1:])} {tensor.dtype}, not those of the store")
            shard.tensors[name] = tensor
        return shard.tensors[name]

    def _shard(self, file: str) -> _Shard:
        if self._owner != os.getpid():  # A forked worker opens its own files.
            self._open, self._owner = OrderedDict(), os.getpid()
        if file not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)
            self._open[file] = _Shard(safe_open(self.store.path / file, framework="pt"), {})
        self._open.move_to_end(file)
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}
