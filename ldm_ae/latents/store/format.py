"""The latent store: its files on disk. `writer.py` writes them, `reader.py` reads them.

    STORE/store.json              the request; in a complete store also the sha256 and size of every other file, and
                                  `redone_batches`: those that overflowed in fp16 and were encoded in float32,
                                  also by shard
    STORE/index.parquet           one row per sample of the source, in its order, including bad ones
    STORE/stats.json              statistics of `latents` over the whole data set
    STORE/classes.json            the names of the labels 0, 1, ..., where they have names
    STORE/256x256/                the shards and statistics of the images of HxW pixels
        latents_rank00_shard000.safetensors, ...
        latents_stats.pt          {'mean', 'std'}, (1, C, 1, 1) float32, over the whole data set; not in uint8

A shard holds the N valid images of its resolution among `shard_size` consecutive ones of the source, in that order; the
shards of one such range have the same name in their resolutions' folders. Its tensors:

    latents, latents_flip         (N, C, h, w)   one posterior sample (or the mode) of the image and of its mirror image
    moments, moments_flip         (N, 2C, h, w)  mean and log-variance on channels, log-variance clamped to [-30, 20]
    indices, indices_flip         (N, h, w)      codes of a discrete model, or (N, Q, h, w) with Q levels of residual
                                                 quantization; uint8, uint16, int32 or int64, the narrowest that holds
                                                 `codebook_size` - 1
    latents_scale, moments_scale, ...            scale of each of these in uint8: (N, C or 2C, 2) float32, step and
                                                 lowest value of an image's channel; latents = uint8 * step + lowest
    squared_error                 (N, C)         float32, beside uint8: mean over its positions of the squared error of
                                                 the image's latents as they are read, stored or drawn
    labels                        (N,) int64     -1: none
    index                         (N,) int64     row of index.parquet
    original_size                 (N, 2) int64   height, width of the image before the transform
    crop_ltrb                     (N, 4) int64   left, top, right, bottom in original pixels

The `_flip` tensors exist unless they are disabled. A Gaussian posterior has moments, a discrete one indices. A store of
samples has neither; a lean store has no latents: its statistics are of those that are drawn from its moments with the
same noise, or that the model looks up. Latents and moments are fp32, fp16, bf16 or uint8, finite, and unscaled:
`LatentSpec.scale` is applied when they are read. In uint8 a resolution's folder has no latents_stats.pt, so that no
reader of the shards alone takes the levels for latents (`formats/lightningdit.py`). The noise of a posterior sample is
a function of (seed, key, whether mirrored) alone. The header's strings: format, format_version, model_hash,
model_config (JSON), dtype, latents (sample or mode), scaling (JSON of the model's LatentSpec, with its codebook's size
and levels; not applied), value_range of the pixels, seed, transform_hash, rows; of
blended tiles also tile and overlap.

store.json is written first without `files` and last with them: a store without `files` is not complete, and has a
folder .work that records the finished shards (`records.py`). `processes` is the number of encoding processes, as in the
shards' names; a range of the source without a valid image of a resolution has a number and no file there. A store whose
data set has grown has `additions`, (first image, processes) each, whose ranges and ranks follow those before, and
`classes`, the names of the labels 0, 1, ..., keep their numbers. The `checksum` is the sha256 of the other content as
canonical JSON, and the file's text is the output of `write_json`, so every change is detected. Every file appears by a
rename, so no file is ever partial.
"""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ldm_ae.core.errors import UserError, reason
from ldm_ae.data import ColourProfiles
from ldm_ae.io.files import read_json
from ldm_ae.models import hash_json
from ldm_ae.models.stored_rows import ERROR, SCALE, STORED_DTYPES

FORMAT = "ldm_ae latent store"
FORMAT_VERSION = 1
DESCRIPTION, INDEX, STATISTICS, CLASSES = "store.json", "index.parquet", "stats.json", "classes.json"
ACCOUNT = b"ldm_ae.account"
"""Key of the index's metadata: the files that the source used and skipped, as JSON (`ldm_ae.data.account`)."""
BUCKET_STATISTICS = "latents_stats.pt"
BUCKET_NAME = re.compile(r"[1-9]\d{0,5}x[1-9]\d{0,5}")
SHARD_NAME = re.compile(r"latents_rank\d{2,6}_shard\d{3,9}\.safetensors")
DTYPES = STORED_DTYPES
"""The dtype of stored latents and moments, by the name that commands take."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_hash", pa.string()),  # sha256 of the encoded image, hex
        pa.field("width", pa.int32()),  # of the original image, in pixels
        pa.field("height", pa.int32()),
        # Left, top, right, bottom in original pixels. Not a fixed-size list, whose nulls pyarrow reads only since 26.
        pa.field("crop", pa.list_(pa.int32())),
        pa.field("bucket", pa.string()),
        pa.field("shard", pa.string()),  # file name in the bucket's folder
        pa.field("row", pa.int32()),
        pa.field("label", pa.int64(), nullable=False),  # -1: none
        pa.field("caption", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # ok, or bad with its error and nulls for unknown values
        pa.field("error", pa.string()),  # for a valid image: the reason that its caption or label is not used
        pa.field("orientation", pa.int8()),  # EXIF orientation, which was undone; null in stores older than the column
        pa.field("colour_profile", pa.string()),  # profile that was converted from, or "not applied: ..."; else null
    ]
)
_ADDED_COLUMNS = ("orientation", "colour_profile")
_FIXED_CROP = pa.field("crop", pa.list_(pa.int32(), 4))  # in stores of older versions


@dataclass(frozen=True, kw_only=True)
class StoredOptions:
    """The options of encoding that determine the bytes of a store. All are recorded in store.json.

    A field that is added later needs the default with which older stores were made.
    """

    dtype: str = "fp32"
    """Dtype of the stored latents and moments: fp32, bf16, fp16 or uint8. In uint8 each channel of each image has 256
    levels; the error is measured and included in the statistics."""
    precision: str = "fp32"
    """Precision of the encoder: auto, fp32, bf16 or fp16. `auto` takes that of an existing store, or else the one that
    is fast on this machine; a store records the choice. A batch that overflows in fp16 is encoded in fp32."""
    latents: Literal["sample", "mode"] = "sample"
    """Whether `latents` is one posterior sample or the mode."""
    seed: int = 0
    """Seed of the posterior samples."""
    batch_size: int = 16
    """Images per forward pass; a store records that of the last run that encoded. The last bits of a convolution may
    depend on it."""
    shard_size: int = 1024
    """Images of the source that one file of each size covers; it bounds the memory."""
    content: Literal["full", "samples", "lean"] = "full"
    """`samples` omits the moments, for a third of the size, and no sample can be drawn again; `lean` omits the latents,
    for two thirds, and readers draw them from the moments. For a discrete model `samples` omits the indices; `lean`
    stores only the indices, and reading latents needs the model."""
    compiled: bool = False
    """Run the encoder through torch.compile, once for each size; partial batches are padded. Worth its minutes of
    compiling for large data sets."""


@dataclass(frozen=True, kw_only=True)
class StoreRequest(StoredOptions):
    """All values that determine the bytes of a store, as JSON values."""

    source: str
    """The origin of the images, as the user named it when the store was started."""
    images: int
    keys_hash: str
    """sha256 over the keys of the images in the order of the store."""
    model_hash: str
    model_config: dict[str, Any]
    scaling: dict[str, Any]
    """The model's LatentSpec, recorded but not applied."""
    transform: dict[str, Any]
    transform_hash: str
    flips: bool = True
    """Whether the store also has the mirror images' latents and moments."""
    indices: bool = False
    """Whether the store has indices, those of the codebook in `scaling`."""
    deterministic: bool = False
    """Whether the model's encoder gives latents and no distribution (AutoencoderTiny, AutoencoderDC, AutoencoderRAE):
    the store holds `latents` alone, no moments, in every `content`."""
    tile: int = 0
    """Side in pixels of the tiles that were encoded and blended; 0 for whole images, and for exact tiling, which
    changes at most the last bits of a latent."""
    overlap: int = 0
    """Minimum overlap of the blended tiles in pixels."""

    @property
    def indices_alone(self) -> bool:
        """Return whether the store has indices alone, so that only the model can look up latents."""
        return self.indices and self.content == "lean"

    @property
    def latents_tensors(self) -> tuple[str, ...]:
        """Return the names of the tensors in a shard that determine the latents, with their scale and error."""
        if self.indices_alone:
            return ("indices",)
        name = "moments" if self.content == "lean" else "latents"
        return (name, f"{name}{SCALE}", ERROR) if self.dtype == "uint8" else (name,)

    @property
    def has_bucket_statistics(self) -> bool:
        """Return whether `BUCKET_STATISTICS` is beside the shards, which then hold latents that can be read alone."""
        return self.dtype != "uint8"

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON values, in the order of store.json, whose bytes stay the same across versions."""
        values = asdict(self)
        later = [entry.name for entry in fields(StoredOptions) if entry.name not in _FIRST]
        for name in (*_FIRST, *later, "indices", "compiled"):
            values[name] = values.pop(name)
        if not values["deterministic"]:
            del values["deterministic"]
        for name in () if self.tile else _BLENDING:
            del values[name]
        return values

    def header(self, rows: int) -> dict[str, str]:
        """Return the metadata of a shard with `rows` rows."""
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
            **({"deterministic": "true"} if self.deterministic else {}),
            **({name: str(getattr(self, name)) for name in _BLENDING} if self.tile else {}),
        }


_BLENDING = ("tile", "overlap")
"""The fields that only a request with blended tiles writes, so that other stores keep their bytes."""
_FIRST = ("dtype", "precision", "latents", "flips", "seed", "batch_size", "shard_size")
"""The fields that every request has, although the options have defaults."""
_ADDED: dict[str, Any] = {
    entry.name: entry.default
    for entry in fields(StoreRequest)
    if entry.default is not MISSING and entry.name not in _FIRST
}
"""The values of later fields for requests that lack them."""
_KINDS = {"str": str, "int": int, "bool": bool, "dict[str, Any]": dict}


def read_request(found: dict[str, Any]) -> StoreRequest:
    """Return the request in a store's description; check that each field exists with its type, and ignore others.

    Raises:
        ValueError: A field is missing.
    """
    found = _ADDED | found
    for entry in fields(StoreRequest):
        kind = _KINDS.get(str(entry.type), str)
        if type(found.get(entry.name)) is not kind:
            raise ValueError(f"request.{entry.name} is missing or not of type {kind.__name__}")
    if found["dtype"] not in DTYPES:
        raise ValueError(f"request.dtype is {short(found['dtype'])}")
    return StoreRequest(**{entry.name: found[entry.name] for entry in fields(StoreRequest)})


def complete_columns(rows: pa.Table) -> pa.Table:
    """Add the columns that an index of an older version lacks, null throughout, and give `crop` its current type.

    Raises:
        ValueError: The columns are not those of a latent store.
    """
    for name in _ADDED_COLUMNS:
        if name not in rows.column_names:
            field = SCHEMA.field(name)
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    place = rows.schema.get_field_index("crop")
    if place >= 0 and rows.schema.field(place).equals(_FIXED_CROP):
        field = SCHEMA.field("crop")
        rows = rows.set_column(place, field, rows["crop"].cast(field.type))
    if not rows.schema.equals(SCHEMA):
        raise ValueError("the columns of the index are not those of a latent store")
    if not pc.all(pc.equal(pc.list_value_length(rows["crop"]), 4), min_count=0).as_py():
        raise ValueError("a crop of the index does not have four numbers")
    return rows


def recorded_request(path: str | Path) -> dict[str, Any]:
    """Return what the store at `path`, finished or not, was made with; empty if there is no store.

    Raises:
        UserError: The store's description is damaged.
    """
    path = Path(path)
    return read_description(path)["request"] if (path / DESCRIPTION).is_file() else {}


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of store.json, with its outer structure checked.

    Raises:
        UserError: There is no store, it has another version, or a file is damaged.
    """
    file = path / DESCRIPTION
    try:
        content = read_json(file, as_written=True)
    except FileNotFoundError:
        what = "is not a latent store: it has no store.json" if path.is_dir() else "is not a folder"
        raise UserError(f"{path} {what}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{file} does not describe a latent store")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {short(content.get('format_version'))}; this program reads {FORMAT_VERSION}"
        )
    checksum = content.pop("checksum", None)
    if checksum != hash_json(content):
        raise UserError(f"{file} is damaged: its checksum does not match")
    if not isinstance(content.get("request"), dict) or not _names_files(content.get("files")):
        raise UserError(f"{file} is damaged")
    content["request"] = _ADDED | content["request"]
    return content


def colour_profiles_of(path: Path) -> ColourProfiles | None:
    """Return how the store at `path`, finished or not, treats colour profiles; None if there is no store.

    Raises:
        UserError: As `read_description`.
    """
    if not (path / DESCRIPTION).is_file():
        return None
    transform = read_description(path)["request"].get("transform")
    return "convert" if isinstance(transform, dict) and transform.get("colour_profiles") == "convert" else "ignore"


def _names_files(files: object) -> bool:
    """Return whether `StoreWriter` writes such a value: None yet, or a `Written` for each file."""
    if files is None:
        return True
    kinds = {"sha256": str, "size": int}
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {key: type(value) for key, value in entry.items()} == kinds
        for entry in files.values()
    )


def short(value: object) -> str:
    """Return a JSON value in a form for a one-line message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
