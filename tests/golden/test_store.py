"""The format of latent stores: exact where no network computes, with a tolerance otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_ae.cli import main
from ldm_ae.latents import verify_store
from ldm_ae.latents.store.format import DTYPES, StoreRequest
from ldm_ae.latents.store.provenance import scaling_of
from ldm_ae.latents.store.quantize_uint8 import pack
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import Autoencoder, KLAutoencoder, LatentSpec, VQAutoencoder, hash_json, model_hash, weights_sha256
from ldm_ae.models.stored_rows import index_dtype
from ldm_ae.quantizers import VQ
from tests.golden.compare import Golden
from tests.golden.describe import describe_store, digests, tensor_values
from tests.golden.inputs import integers, set_exact_weights

# ---------------------------------------------------------------------------------------------------------- exact bytes

KINDS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "fp32", "flips": True},
    "indices": {"dtype": "bf16", "flips": False, "indices": True},
    "uint8": {"dtype": "uint8", "flips": True, "content": "lean", "latents": "mode"},
}
_VERSIONED = ("store.json", "index.parquet", "8x8/latents_stats.pt", "16x4/latents_stats.pt")
"""Files that hold a version of pyarrow or torch, or the sha256 of one that does; `describe_store` compares them."""


def exact_request(**changes: Any) -> StoreRequest:
    codes = 300 if changes.get("indices") else None
    spec = LatentSpec(channels=4, downsample_factor=4, scaling_factor=0.5, codebook_size=codes)
    values: dict[str, Any] = {
        "source": "images", "images": 9, "keys_hash": "0" * 64, "model_hash": "1" * 64,
        "model_config": {"_class_name": "Exact"}, "scaling": scaling_of(spec), "transform": {"size": [8, 8]},
        "transform_hash": hash_json({"size": [8, 8]}), "precision": "fp32", "latents": "sample", "seed": 3,
        "batch_size": 2, "shard_size": 5,
    }  # fmt: skip
    return StoreRequest(**(values | changes))


def exact_tensors(request: StoreRequest, bucket: str, numbers: list[int]) -> dict[str, Tensor]:
    """Tensors of some images: whole numbers, whose sums and means over a power of two have no rounding."""
    height, width = (int(side) // 4 for side in bucket.split("x"))
    tensors: dict[str, Tensor] = {}
    for seed, view in enumerate(("", "_flip") if request.flips else ("",)):
        found = torch.stack([integers((8, height, width), 31 * number + seed) for number in numbers]).float()
        if request.content == "lean":
            # A range of 255 makes a step of 1, so that eight bits lose nothing.
            found[:, :, 0, 0], found[:, :, 0, -1] = -127.0, 128.0
            tensors |= {f"moments{view}": found}
            continue
        dtype = DTYPES[request.dtype]
        tensors[f"latents{view}"] = found[:, :4].to(dtype)
        if request.indices:
            codes = torch.stack([integers((height, width), number, 0, 299) for number in numbers])
            tensors[f"indices{view}"] = codes.to(index_dtype(300))
        else:
            tensors[f"moments{view}"] = found.to(dtype)
    if request.dtype == "uint8":
        tensors = pack(tensors, lambda floats: floats["moments"][:, :4])
    return tensors | {
        "labels": torch.tensor([number % 2 for number in numbers]),
        "index": torch.tensor(numbers),
        "original_size": torch.tensor([[40 + number, 50] for number in numbers]),
        "crop_ltrb": torch.tensor([[0, 0, 50, 40 + number] for number in numbers]),
    }


def exact_row(number: int, bucket: str) -> dict[str, Any]:
    if number == 2:
        return {"key": "a/2.png", "source": "images", "label": -1, "status": "bad", "error": "cannot be decoded"}
    return {
        "key": f"{'ab'[number % 2]}/{number}.png", "source": "images", "source_hash": f"{number:064d}", "width": 50,
        "height": 40 + number, "crop": [0, 0, 50, 40 + number], "bucket": bucket, "label": number % 2,
        "caption": f"number {number} é" if number % 4 else None, "status": "ok", "orientation": 1,
        "colour_profile": "Adobe RGB" if number == 3 else None,
    }  # fmt: skip


def write_exact(path: Path, request: StoreRequest, *, finish: bool = True) -> Path:
    """Write nine images in two units, one of them bad: four in 8x8 and four in 16x4, or only the first unit."""
    keys = [exact_row(number, "")["key"] for number in range(9)]
    writer = StoreWriter(path, request, keys=keys, classes=("a", "b"))
    for unit, (bucket, images) in enumerate((("8x8", range(5)), ("16x4", range(5, 9)))):
        good = [number for number in images if number != 2]
        rows = [exact_row(number, bucket) for number in images]
        writer.add_unit(unit, {bucket: exact_tensors(request, bucket, good)}, rows, fp32_fallbacks=unit)
        if not finish:
            return path
    writer.finish({"kind": "folder", "images": 9, "classes": ["a", "b"]})
    return path


@pytest.mark.parametrize("kind", list(KINDS))
def test_store_bytes_match(kind: str, golden: Golden, tmp_path: Path) -> None:
    store = write_exact(tmp_path / "store", exact_request(**KINDS[kind]))
    assert verify_store(store) == []
    golden.json(f"store/{kind}_bytes", digests(store, without=_VERSIONED))
    golden.json(f"store/{kind}", describe_store(store))


def test_unfinished_store_bytes_match(golden: Golden, tmp_path: Path) -> None:
    store = write_exact(tmp_path / "store", exact_request(**KINDS["full"]), finish=False)
    # run.json holds a number drawn for this run, keys.parquet names pyarrow's version.
    found = digests(store, without=(".work/run.json", ".work/keys.parquet"))
    golden.json("store/unfinished_bytes", found)
    golden.json("store/unfinished_record", json.loads((store / ".work/latents_rank00_shard000.json").read_text()))


# ------------------------------------------------------------------------------------------------------------- encoding

# One pass through the encoder: AVX512, AVX2 and plain SSE differ by less than 2e-6 in latents of about 1.
TOLERANCE = {"relative": 1e-4, "absolute": 1e-5}


def exact_model(kind: str) -> Autoencoder:
    """A model whose weights are small whole numbers / 64, the same on every machine."""
    network: dict[str, Any] = {
        "block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False,
    }  # fmt: skip
    model: Autoencoder
    model = KLAutoencoder(**network) if kind == "kl" else VQAutoencoder(quantizer=VQ(64, 4), **network)
    set_exact_weights(model.net, seed=5, divisor=64.0)
    model.set_scaling(scaling_factor=0.5)
    return model


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_encoded_store_matches(kind: str, golden: Golden, golden_images: Path, tmp_path: Path) -> None:
    model = exact_model(kind)
    golden.json(f"store/encoded_{kind}_weights", weights_sha256(model.net))
    model.save_pretrained(tmp_path / "model")
    store = tmp_path / "store"
    arguments = "--sizes 8x8,8x12 --workers 0 --batch-size 4 --shard-size 8 --seed 2 --device cpu"
    assert main(["encode", str(tmp_path / "model"), str(golden_images), str(store), *arguments.split()]) == 0
    assert verify_store(store) == []
    found = describe_store(store)
    # The hash covers the configuration of diffusers' class, to which a version may add a key.
    text = json.dumps(found).replace(model_hash(model), "(hash of the model)")
    text = text.replace(str(golden_images), "(images)")
    golden.json(f"store/encoded_{kind}", json.loads(text), **TOLERANCE)
    shards = sorted(store.glob("*/*.safetensors"))
    values = {path.relative_to(store).as_posix(): tensor_values(path) for path in shards}
    golden.json(f"store/encoded_{kind}_values", values, **TOLERANCE)
