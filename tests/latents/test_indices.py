"""Stores of discrete models: indices with latents, or only indices."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ldm_ae.commands._inspection import inspect_path
from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.io.files import write_json
from ldm_ae.latents import LatentDataset, LatentStore, decode_store, inspect_store, verify_store
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.conversion.import_store import import_latents
from ldm_ae.latents.store.files import write_safetensors
from ldm_ae.models import KLAutoencoder, LatentSpec, VQAutoencoder, hash_json
from ldm_ae.models.stored_rows import index_dtype
from ldm_ae.quantizers import FSQ, LFQ, VQ, Quantizer, ResidualVQ
from tests.latents.helpers import contents, encode
from tests.latents.test_content import SMALL, tensors

KINDS: dict[str, Callable[[], Quantizer]] = {
    "uint8": lambda: VQ(codebook_size=16, codebook_dim=4),
    "uint16": lambda: FSQ((8, 5, 5, 5)),
    "int32": lambda: LFQ(17),
    "levels": lambda: ResidualVQ(VQ(codebook_size=16, codebook_dim=4), 3),
}
DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "int32": torch.int32, "levels": torch.uint8}
SHARD = "32x32/latents_rank00_shard001.safetensors"


def discrete(kind: str = "uint8") -> VQAutoencoder:
    """Downsample factor 2, codes as far apart as its latents are."""
    model = VQAutoencoder(
        quantizer=KINDS[kind](), block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    with torch.no_grad():
        for name, value in model.quantizer.state_dict().items():
            if name.endswith("embedding.weight"):
                value.normal_(std=0.3)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_full_store_has_indices_and_latents(kind: str, image_folder: Path, tmp_path: Path) -> None:
    model = discrete(kind)
    encode(model, image_folder, tmp_path / "store")
    found = tensors(tmp_path / "store")
    assert found.keys() == SMALL | {"latents", "latents_flip", "indices", "indices_flip"}
    assert found["indices"].dtype == found["indices_flip"].dtype == DTYPES[kind]
    assert found["indices"].shape == ((12, 3, 16, 16) if kind == "levels" else (12, 16, 16))
    batches = EvaluationLoader(open_source(image_folder), ImageTransform(size=32), batch_size=3)
    with torch.no_grad():
        given = torch.cat([model.eval().encode(batch.pixel_values).indices for batch in batches])
    assert torch.equal(found["indices"].to(torch.int64), given)
    for view in ("", "_flip"):
        assert torch.equal(model.indices_to_latents(found[f"indices{view}"]), found[f"latents{view}"])
    assert verify_store(tmp_path / "store") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uint16", "levels"])
def test_lean_store_has_only_indices(kind: str, image_folder: Path, tmp_path: Path) -> None:
    model = discrete(kind)
    encode(model, image_folder, tmp_path / "full")
    encode(model, image_folder, tmp_path / "lean", content="lean")
    full, lean = tensors(tmp_path / "full"), tensors(tmp_path / "lean")
    assert lean.keys() == SMALL | {"indices", "indices_flip"}
    assert all(torch.equal(value, full[name]) for name, value in lean.items())
    assert verify_store(tmp_path / "lean") == []
    assert (tmp_path / "lean/stats.json").read_bytes() == (tmp_path / "full/stats.json").read_bytes()
    for name in ("full", "lean"):
        assert decode_store(model, tmp_path / name, tmp_path / f"{name} out", batch_size=5, device="cpu") == 12
    decode_store(model, tmp_path / "lean", tmp_path / "mode out", latents="mode", batch_size=5, device="cpu")
    for name in ("lean", "mode"):
        assert contents(tmp_path / f"{name} out") == contents(tmp_path / "full out")
    with pytest.raises(UserError, match="holds indices, no latents; use draw indices, and look them up with the model"):
        LatentDataset(tmp_path / "lean")[0]
    with pytest.raises(UserError, match="no moments to draw from; use draw indices"):
        LatentDataset(tmp_path / "lean", draw="mode")
    with pytest.raises(UserError, match="holds indices and no latents, which fast-DiT reads; encode with --store full"):
        convert_store(tmp_path / "lean", tmp_path / "out", "fast-dit")


@pytest.mark.parametrize("kind", ["uint16", "levels"])
def test_dataset_yields_indices(kind: str, image_folder: Path, tmp_path: Path) -> None:
    encode(discrete(kind), image_folder, tmp_path / "store", content="lean")
    stored = tensors(tmp_path / "store")
    data = LatentDataset(tmp_path / "store", draw="indices")
    batches = list(DataLoader(data, batch_size=5, num_workers=1))
    indices = torch.cat([batch["indices"] for batch in batches])
    assert indices.dtype == torch.int64
    assert torch.equal(indices, stored["indices"].to(torch.int64))
    assert batches[0].keys() == {"indices", "label", "key"}
    mirrored = LatentDataset(tmp_path / "store", draw="indices", flip="half")
    views = [stored[name].to(torch.int64) for name in ("indices", "indices_flip")]
    of_view = [[torch.equal(mirrored[i]["indices"], view[i]) for view in views] for i in range(12)]
    assert all(any(one) for one in of_view)
    assert {tuple(one) for one in of_view} >= {(True, False), (False, True)}


def test_indices_are_refused_where_none_are_stored(image_folder: Path, tmp_path: Path) -> None:
    encode(discrete(), image_folder, tmp_path / "samples", content="samples")
    assert tensors(tmp_path / "samples").keys() == SMALL | {"latents", "latents_flip"}
    with pytest.raises(UserError, match="holds no indices; encode with a discrete model, not --store samples"):
        LatentDataset(tmp_path / "samples", draw="indices")
    encode(discrete(), image_folder, tmp_path / "full")
    spec = LatentSpec(channels=4, downsample_factor=2, scaling_factor=0.5)
    with pytest.raises(UserError, match="indices are not scaled; remove spec"):
        LatentDataset(tmp_path / "full", draw="indices", spec=spec)


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_latents_are_not_stored_as_indices(kind: str, image_folder: Path, tmp_path: Path) -> None:
    model = discrete(kind)
    with torch.no_grad():
        model.net.encoder.conv_in.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"latents of .* is not finite in fp32; the weights"):
        encode(model, image_folder, tmp_path / "store", content="lean")
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_damaged_shard_of_indices_is_encoded_again(image_folder: Path, tmp_path: Path) -> None:
    """The statistics of the others come from their indices once more."""
    model = discrete("levels")
    encode(model, image_folder, tmp_path / "store", content="lean")
    before = contents(tmp_path / "store")
    assert encode(model, image_folder, tmp_path / "store", content="lean").already_complete
    (tmp_path / "store" / SHARD).write_bytes(before[SHARD][:-1])
    assert not encode(model, image_folder, tmp_path / "store", content="lean").already_complete
    assert contents(tmp_path / "store") == before


def rewrite_description(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((store / "store.json").read_text())
    del content["checksum"]
    change(content)
    write_json(store / "store.json", content | {"checksum": hash_json(content)})


def beyond(found: dict[str, torch.Tensor]) -> None:
    found["indices_flip"][2, 3, 4] = 16


def widen(found: dict[str, torch.Tensor]) -> None:
    found["indices"] = found["indices"].to(torch.int32)


def flatten(found: dict[str, torch.Tensor]) -> None:
    found["indices"] = found["indices"].flatten(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (beyond, r"has indices_flip outside \[0, 16\)"),
        (widen, "has other dtypes than the store's"),
        (flatten, "has other tensors or shapes than the store's"),
    ],
)
def test_wrong_indices_are_detected(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, image_folder: Path, tmp_path: Path
) -> None:
    encode(discrete(), image_folder, tmp_path / "store")
    found = load_file(tmp_path / "store" / SHARD)
    with safe_open(tmp_path / "store" / SHARD, "pt") as file:
        header = file.metadata()
    change(found)
    written = write_safetensors(tmp_path / "store" / SHARD, found, header)
    rewrite_description(tmp_path / "store", lambda content: content["files"].update({SHARD: written._asdict()}))
    with pytest.raises(AssertionError, match=f"^{SHARD} {message}"):
        assert not verify_store(tmp_path / "store"), verify_store(tmp_path / "store")[0]
    assert len(verify_store(tmp_path / "store")) == 1


def age(content: dict[str, Any]) -> None:
    del content["request"]["indices"], content["request"]["content"]


def test_store_written_before_indices_existed_is_resumed(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    encode(tiny_model, image_folder, tmp_path / "store")
    scaling = LatentStore(tmp_path / "store").request.scaling
    assert scaling.keys() == {
        "channels", "downsample_factor", "scaling_factor", "shift_factor", "latents_mean", "latents_std",
        "codebook_size",
    }  # fmt: skip
    rewrite_description(tmp_path / "store", age)
    assert encode(tiny_model, image_folder, tmp_path / "store").already_complete


def test_store_written_before_indices_existed_opens(image_folder: Path, tmp_path: Path) -> None:
    model = discrete()
    encode(model, image_folder, tmp_path / "store", content="samples")  # as a full one was
    rewrite_description(tmp_path / "store", age)
    assert verify_store(tmp_path / "store") == []
    assert LatentStore(tmp_path / "store").request.indices is False
    with pytest.raises(UserError, match=r"is a store made with indices false \(now true\); use"):
        encode(model, image_folder, tmp_path / "store")


@pytest.mark.parametrize(
    ("size", "levels", "message"),
    [
        (None, None, "it has indices, but its model has no codebook"),
        (2**63 + 1, None, r"an index can hold at most 2\^63 codes"),
        (16, 0, "must be whole numbers above 0"),
    ],
)
def test_invalid_codebook_sizes_are_reported_as_damage(
    size: int | None, levels: int | None, message: str, image_folder: Path, tmp_path: Path
) -> None:
    encode(discrete(), image_folder, tmp_path / "store")
    change = {"codebook_size": size, "codebook_levels": levels}
    rewrite_description(tmp_path / "store", lambda content: content["request"]["scaling"].update(change))
    with pytest.raises(UserError, match=message):
        LatentStore(tmp_path / "store")


def test_inconsistent_index_shards_are_refused(image_folder: Path, tmp_path: Path) -> None:
    encode(discrete(), image_folder, tmp_path / "store")
    store = LatentStore(tmp_path / "store")
    assert torch.equal(torch.cat(list(store.indices())), tensors(tmp_path / "store")["indices"].to(torch.int64))
    for indices in (torch.full((5, 16, 16), 16, dtype=torch.uint8), torch.zeros(0, 16, 16, dtype=torch.uint8)):
        write_safetensors(tmp_path / "store" / SHARD, {"indices": indices}, {})
        with pytest.raises(UserError, match=r"latents_rank00_shard001\.safetensors cannot be read"):
            list(store.indices())


def test_indices_of_another_model_are_not_decoded(image_folder: Path, tmp_path: Path) -> None:
    encode(discrete(), image_folder, tmp_path / "store", content="lean")
    with pytest.raises(UserError, match="made by another model"):
        decode_store(discrete("levels"), tmp_path / "store", tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match="has indices of 16 codes, the model has 16 codes in 3 levels"):
        decode_store(
            discrete("levels"), tmp_path / "store", tmp_path / "out", device="cpu", allow_other_model=True
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_latents_of_a_discrete_model_roundtrip_through_conversion(image_folder: Path, tmp_path: Path) -> None:
    encode(discrete(), image_folder, tmp_path / "store")
    convert_store(tmp_path / "store", tmp_path / "converted", "lightningdit")
    [warning] = import_latents(tmp_path / "converted", tmp_path / "back").warnings
    assert warning == "these files do not hold the indices of the codes, only the latents that the codes stand for"
    assert verify_store(tmp_path / "back") == []
    ours, back = LatentDataset(tmp_path / "store"), LatentDataset(tmp_path / "back")
    of_key = {item["key"]: item["latents"] for item in map(back.__getitem__, range(12))}
    assert all(torch.equal(of_key[ours[i]["key"]], ours[i]["latents"]) for i in range(12))
    assert LatentStore(tmp_path / "back").request.indices is False
    with pytest.raises(UserError, match="EDM2 draws from moments"):
        convert_store(tmp_path / "store", tmp_path / "out.zip", "edm2-zip")
    # Nothing is lost where there was nothing.
    encode(discrete(), image_folder, tmp_path / "samples", content="samples")
    convert_store(tmp_path / "samples", tmp_path / "of samples", "lightningdit")
    assert import_latents(tmp_path / "of samples", tmp_path / "again").warnings == []


@pytest.mark.parametrize(("kind", "levels"), [("uint16", 1), ("levels", 3)])
def test_inspect_reports_codebook_usage(kind: str, levels: int, image_folder: Path, tmp_path: Path) -> None:
    encode(discrete(kind), image_folder, tmp_path / "store", content="lean")
    found = inspect_path(tmp_path / "store")
    assert inspect_store(tmp_path / "store")["indices"] is True
    assert list(found)[-2:] == ["codebook", "problems"]
    codes = found["codebook"]
    size = {"uint16": 1000, "levels": 16}[kind]
    assert (codes["size"], codes["levels"], codes["fixed_bits_per_code"]) == (size, levels, math.log2(size))
    assert codes["counted"] == 12 * 256
    stored = tensors(tmp_path / "store")["indices"].to(torch.int64).view(12, levels, 256)
    for level in range(levels):
        flat = stored[:, level].flatten()
        shares = flat.bincount().double() / len(flat)
        entropy = -(shares[shares > 0] * shares[shares > 0].log2()).sum().item()
        assert codes["used"][level] == len(flat.unique())
        assert codes["bits_per_code"][level] == pytest.approx(entropy)
        assert codes["perplexity"][level] == pytest.approx(2**entropy)


def test_indices_use_the_narrowest_dtype() -> None:
    widths = [
        (2, torch.uint8),
        (256, torch.uint8),
        (257, torch.uint16),
        (2**16, torch.uint16),
        (2**16 + 1, torch.int32),
    ]
    for size, dtype in [*widths, (2**31, torch.int32), (2**31 + 1, torch.int64), (2**62, torch.int64)]:
        assert index_dtype(size) == dtype
