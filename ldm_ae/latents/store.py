"""The latent store: what lies on disk, and its writer.

    STORE/store.json              what was asked for; when all is written, also the sha256 and size of every other file,
                                  and `redone_batches`: those that overflowed in fp16 and were encoded in float32
    STORE/index.parquet           one row a sample of the source, in its order, the bad ones too
    STORE/stats.json              statistics of `latents` over the whole data set
    STORE/256x256/                HxW of the pixels; a LightningDiT data set of its own
        latents_rank00_shard000.safetensors, ...
        latents_stats.pt          {'mean', 'std'}, (1, C, 1, 1) float32, over the whole data set

A shard holds the N good images among `shard_size` consecutive ones of the source, in that order. Its tensors:

    latents, latents_flip         (N, C, h, w)   one posterior sample (or the mode) of the image and of its mirror image
    moments, moments_flip         (N, 2C, h, w)  mean and log-variance on channels, log-variance clamped to [-30, 20]
    labels                        (N,) int64     -1: none
    index                         (N,) int64     row of index.parquet
    original_size                 (N, 2) int64   height, width of the image before the transform
    crop_ltrb                     (N, 4) int64   left, top, right, bottom in original pixels

The `_flip` tensors are there unless switched off. Latents and moments are fp32, fp16 or bf16, finite, and unscaled:
`LatentSpec.scale` is applied when they are read. The noise of a posterior sample is a function of (seed, key, whether
mirrored) alone. The header's strings: format, format_version, model_hash, model_config (JSON), dtype, latents (sample
or mode), scaling (JSON of the model's LatentSpec, not applied), value_range of the pixels, seed, transform_hash, rows.

store.json is written first without `files` and last with them: a store without is not complete. Its `checksum` is the
sha256 of its other content as canonical JSON, and its text is what `write_json` writes, so that no change goes unseen.
Every file appears by a rename, so none is ever half there.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldm_ae.errors import UserError, reason
from ldm_ae.files import make_folder, read_json, write_json
from ldm_ae.latents.files import Written, look_at, write_bytes, write_safetensors
from ldm_ae.locks import LOCK
from ldm_ae.models import ChannelStatistics, LatentSpec, hash_json

FORMAT = "ldm_ae latent store"
FORMAT_VERSION = 1
DESCRIPTION, INDEX, STATISTICS = "store.json", "index.parquet", "stats.json"
LIGHTNINGDIT_STATISTICS = "latents_stats.pt"
BUCKET_NAME = re.compile(r"[1-9]\d{0,5}x[1-9]\d{0,5}")
SHARD_NAME = re.compile(r"latents_rank\d{2,6}_shard\d{3,9}\.safetensors")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The dtype of stored latents and moments, by the name that commands take."""
BOOKKEEPING: dict[str, tuple[int, ...]] = {"labels": (), "index": (), "original_size": (2,), "crop_ltrb": (4,)}
"""Shape of one row of the int64 tensors, by name."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_hash", pa.string()),  # sha256 of the encoded image, hex
        pa.field("width", pa.int32()),  # of the original, in pixels
        pa.field("height", pa.int32()),
        pa.field("crop", pa.list_(pa.int32(), 4)),  # left, top, right, bottom in original pixels
        pa.field("bucket", pa.string()),
        pa.field("shard", pa.string()),  # file name in the bucket's folder
        pa.field("row", pa.int32()),
        pa.field("label", pa.int64(), nullable=False),  # -1: none
        pa.field("caption", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # ok, or bad with its error; a bad one has nulls above
        pa.field("error", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """Everything that the bytes of a store follow from, as JSON values. Two equal requests are the same command."""

    source: str
    """Where the images come from, as the user named it."""
    images: int
    keys_hash: str
    """sha256 over the source's keys."""
    model_hash: str
    model_config: dict[str, Any]
    scaling: dict[str, Any]
    """The model's LatentSpec; recorded, not applied."""
    transform: dict[str, Any]
    transform_hash: str
    dtype: str
    """fp32, fp16 or bf16: of the stored latents and moments."""
    precision: str
    """fp32, fp16 or bf16: what the encoder ran in."""
    latents: Literal["sample", "mode"]
    flips: bool
    seed: int
    batch_size: int
    """The last bits of a convolution may depend on it."""
    shard_size: int

    def header(self, rows: int) -> dict[str, str]:
        """The metadata of a shard with `rows` rows."""
        return {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "model_hash": self.model_hash,
            "model_config": json.dumps(self.model_config, sort_keys=True),
            "dtype": self.dtype,
            "latents": self.latents,
            "scaling": json.dumps(self.scaling, sort_keys=True),
            "value_range": "[-1, 1]",
            "seed": str(self.seed),
            "transform_hash": self.transform_hash,
            "rows": str(rows),
        }


_KINDS = {"str": str, "int": int, "bool": bool, "dict[str, Any]": dict}


def read_request(found: dict[str, Any]) -> StoreRequest:
    """The request in a store's description, of whose fields none is missing or of another type; others are ignored.

    Raises:
        ValueError: what is missing.
    """
    for entry in fields(StoreRequest):
        kind = _KINDS.get(str(entry.type), str)
        if type(found.get(entry.name)) is not kind:
            raise ValueError(f"request.{entry.name} is missing or no {kind.__name__}")
    if found["dtype"] not in DTYPES:
        raise ValueError(f"request.dtype is {_short(found['dtype'])}")
    return StoreRequest(**{entry.name: found[entry.name] for entry in fields(StoreRequest)})


def row_of_tensor(name: str, bucket: str, spec: LatentSpec, dtype: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of one image's row of a shard's tensor; `dtype` is that of the store's latents."""
    if name in BOOKKEEPING:
        return BOOKKEEPING[name], torch.int64
    height, width = (int(side) for side in bucket.split("x"))
    channels = spec.channels * (2 if name.startswith("moments") else 1)
    return (channels, *spec.latent_size(height, width)), dtype


class StoreWriter:
    """Writes one store: `add_shard` for each range of the source in order, then `finish`.

    Args:
        path: The store's folder: new, empty, or an unfinished store of the same request, which is started again.
        request: What is being encoded.
        rank: The number in the shards' names.

    Raises:
        UserError: the folder holds something else, or a store of another request.
    """

    def __init__(self, path: str | Path, request: StoreRequest, *, rank: int = 0):
        self.path = Path(path)
        self.request = request
        self._rank = rank
        self.complete = self._claim()
        """Whether this very store is there already; nothing may be added then."""
        self.statistics = ChannelStatistics(request.scaling["channels"])
        self.good = 0
        self._files: dict[str, Written] = {}
        self._tables: list[pa.Table] = []
        self._shards = 0

    def _claim(self) -> bool:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; name a folder for the store")
        make_folder(self.path)
        description = self.path / DESCRIPTION
        if not description.is_file():
            if foreign := sorted(entry.name for entry in self.path.iterdir() if not _is_ours(entry.name)):
                raise UserError(f"{self.path} is not empty ({foreign[0]}) and no latent store; name a new folder")
            write_json(description, self._description(None))
            return False
        found = read_description(self.path)
        ours = asdict(self.request)
        if different := [key for key in ours if found["request"].get(key) != ours[key]]:
            name = different[0]
            raise UserError(
                f"{self.path} is a store made with {name} {_short(found['request'].get(name))}, not "
                f"{_short(ours[name])}; name another folder, or delete it"
            )
        if found.get("files") is not None:
            return True
        for file in (*self.path.glob("*"), *self.path.glob("*x*/*")):
            if _is_temporary(file.name) or (
                BUCKET_NAME.fullmatch(file.parent.name) and SHARD_NAME.fullmatch(file.name)
            ):
                file.unlink()
        return False

    def _description(self, files: dict[str, Written] | None, redone_batches: int = 0) -> dict[str, Any]:
        content: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "request": asdict(self.request)}
        if files is not None:
            content["files"] = {name: written._asdict() for name, written in sorted(files.items())}
            content["redone_batches"] = redone_batches
        return content | {"checksum": hash_json(content)}

    def add_shard(self, bucket: str, tensors: dict[str, Tensor], rows: Sequence[dict[str, Any]]) -> None:
        """The next range of the source: its good images' tensors, and a manifest row for each image, good or bad.

        Args:
            bucket: HxW of the pixels.
            tensors: As in the module's description, in the stored dtype; empty if no image of the range is good.
            rows: Manifest rows in the order of the source, `bucket`, `shard` and `row` not yet set.
        """
        assert not self.complete, "nothing is added to a complete store"
        good = [row for row in rows if row["status"] == "ok"]
        name = f"latents_rank{self._rank:02d}_shard{self._shards:03d}.safetensors"
        if good:
            assert all(len(tensor) == len(good) for tensor in tensors.values()), "one row a good image"
            for position, row in enumerate(good):
                row |= {"bucket": bucket, "shard": name, "row": position}
            folder = self.path / bucket
            folder.mkdir(exist_ok=True)
            self._files[f"{bucket}/{name}"] = write_safetensors(folder / name, tensors, self.request.header(len(good)))
            # Of what is stored, after rounding, so that anyone can compute the same from the files.
            self.statistics.update(tensors["latents"])
            self.good += len(good)
            self._shards += 1
        self._tables.append(pa.Table.from_pylist(list(rows), schema=SCHEMA))

    def finish(self, *, redone_batches: int = 0) -> None:
        """Write index and statistics, then mark the store complete.

        Args:
            redone_batches: How many overflowed in the request's precision and were encoded in float32.
        """
        assert not self.complete, "a store is finished once"
        assert self.good > 0, "a store without latents is none"
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(self._tables), sink, compression="zstd")
        self._files[INDEX] = write_bytes(self.path / INDEX, memoryview(sink.getvalue()))
        write_json(self.path / STATISTICS, describe_statistics(self.statistics, images=self.good))
        self._files[STATISTICS] = look_at(self.path / STATISTICS)
        lightningdit = lightningdit_statistics(self.statistics)
        for bucket in sorted({name.partition("/")[0] for name in self._files if "/" in name}):
            name = f"{bucket}/{LIGHTNINGDIT_STATISTICS}"
            self._files[name] = write_bytes(self.path / name, lightningdit)
        write_json(self.path / DESCRIPTION, self._description(self._files, redone_batches))
        self.complete = True


def describe_statistics(statistics: ChannelStatistics, *, images: int) -> dict[str, Any]:
    """The content of stats.json: population statistics of the stored `latents` in float64, mirror images not counted.

    `state` is what `ChannelStatistics.from_state` takes, to merge with others exactly.
    """
    return {
        "images": images,
        "channel_mean": statistics.channel_mean.tolist(),
        "channel_std": statistics.channel_std.tolist(),
        "pooled_mean": statistics.pooled_mean,
        "pooled_std": statistics.pooled_std,
        # A constant has no scale; it can only come from an untrained or broken encoder.
        "scaling_factor": 1.0 / statistics.pooled_std if statistics.pooled_std > 0 else None,
        "state": statistics.state(),
    }


def lightningdit_statistics(statistics: ChannelStatistics) -> bytes:
    """LightningDiT's file. Written through memory, because torch.save puts a path's name into the bytes."""
    buffer = io.BytesIO()
    mean, std = (value.float().view(1, -1, 1, 1) for value in (statistics.channel_mean, statistics.channel_std))
    torch.save({"mean": mean, "std": std}, buffer)
    return buffer.getvalue()


def read_description(path: Path) -> dict[str, Any]:
    """The content of store.json, its outer shape checked.

    Raises:
        UserError: no store, another version, or a damaged file.
    """
    file = path / DESCRIPTION
    try:
        content = read_json(file, as_written=True)
    except FileNotFoundError:
        what = "is no latent store: it has no store.json" if path.is_dir() else "is no folder"
        raise UserError(f"{path} {what}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{file} does not describe a latent store")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {_short(content.get('format_version'))}; this program reads {FORMAT_VERSION}"
        )
    checksum = content.pop("checksum", None)
    if checksum != hash_json(content):
        raise UserError(f"{file} is damaged: its checksum does not fit")
    if not isinstance(content.get("request"), dict) or not _names_files(content.get("files")):
        raise UserError(f"{file} is damaged")
    return content


def _is_ours(name: str) -> bool:
    return name == LOCK or _is_temporary(name)


def _names_files(files: object) -> bool:
    """Whether it is what `StoreWriter` writes: nothing yet, or a `Written` for each file."""
    if files is None:
        return True
    kinds = {"sha256": str, "size": int}
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {key: type(value) for key, value in entry.items()} == kinds
        for entry in files.values()
    )


def _is_temporary(name: str) -> bool:
    """Whether `ldm_ae.files.writing` left it behind when its process was killed."""
    return name.startswith(".") and name.endswith(".tmp")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
