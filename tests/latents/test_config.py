"""One configuration from the command line to the store: each option is a field, each that shapes bytes is stored."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ldm_ae.commands import COMMANDS
from ldm_ae.commands.encode import _config
from ldm_ae.core.errors import UserError
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.io.files import read_json
from ldm_ae.latents import EncodeConfig, LatentStore, encode_images
from ldm_ae.latents.store.format import StoredOptions, StoreRequest, read_request
from ldm_ae.models import KLAutoencoder

OTHER: dict[str, Any] = dict(
    dtype="bf16", precision="bf16", latents="mode", flips=False, seed=7, batch_size=5, shard_size=4, content="samples",
    compiled=True, source_name="photos", classes=("cat", "dog"), workers=3, device="cpu", max_bad_fraction=0.5,
    check=False,
)  # fmt: skip
"""A value for each field that is not its default."""


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    COMMANDS["encode"]().add_arguments(parser)
    return parser.parse_args(["model", "photos", "store", *options])


def test_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        EncodeConfig().seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        EncodeConfig("fp32")  # type: ignore[call-arg]


@pytest.mark.parametrize("changes", [{"dtype": "fp8"}, {"content": "half"}, {"shard_size": 0}])
def test_config_refuses_invalid_values(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        EncodeConfig(**changes)


def test_every_option_of_the_command_reaches_its_field(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    args = parsed(
        "--bf16", "--precision", "bf16", "--latents", "mode", "--no-flips", "--seed", "7", "--batch-size", "5",
        "--shard-size", "4", "--store", "samples", "--compile", "--classes", str(tmp_path / "classes.txt"),
        "--workers", "3", "--device", "cpu", "--max-bad-fraction", "0.5", "--no-check",
    )  # fmt: skip
    assert asdict(_config(args)) == OTHER
    unchanged = asdict(EncodeConfig())
    assert all(OTHER[field.name] != unchanged[field.name] for field in fields(EncodeConfig)), "each is tried"


def test_defaults_of_the_command() -> None:
    config = EncodeConfig(batch_size=8, workers=2, source_name="photos")
    assert _config(parsed()) == config


def test_keywords_replace_fields_of_the_config(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    config = EncodeConfig(device="cpu", batch_size=3, latents="mode", flips=False, source_name="photos")
    encode_images(
        tiny_model, open_source(image_folder), tmp_path / "store", transform=ImageTransform(size=32), config=config,
        shard_size=5, seed=9,
    )  # fmt: skip
    expected = replace(config, shard_size=5, seed=9)
    request = LatentStore(tmp_path / "store").request
    assert {name: getattr(request, name) for name in expected.stored()} == expected.stored()
    assert request.source == "photos"
    assert not request.flips


def test_mirror_images_are_stored_where_labels_hold_for_them(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    def encode(store: str, images: str, **options: Any) -> tuple[bool, list[str]]:
        found = encode_images(
            tiny_model,
            open_source(images),
            tmp_path / store,
            transform=ImageTransform(size=32),
            device="cpu",
            **options,
        )
        dataset = LatentStore(tmp_path / store)
        [bucket] = {name.split("/")[0] for name in dataset.files if name.endswith(".safetensors")}
        tensors = load_file(next((tmp_path / store / bucket).glob("*.safetensors")))
        assert dataset.request.flips == ("latents_flip" in tensors)
        return dataset.request.flips, found.warnings

    assert encode("folder", str(image_folder)) == (True, [])
    flips, [note] = encode("sprites", "sprites:2")
    assert not flips
    assert "--flips stores them" in note
    assert encode("mirrored", "sprites:2", flips=True) == (True, [])
    assert encode("mirrored", "sprites:3") == (True, []), "a store keeps its choice when images are added"


def test_unknown_keyword_is_refused(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'sede'"):
        encode_images(
            tiny_model, open_source(image_folder), tmp_path / "store", transform=ImageTransform(size=32), sede=1
        )
    assert not (tmp_path / "store").exists()


def test_old_name_of_a_keyword_is_deprecated(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "cats" / "broken.png").write_bytes(b"not an image")
    options: dict[str, Any] = dict(transform=ImageTransform(size=32), device="cpu", flips=False)
    with pytest.warns(FutureWarning, match="use max_bad_fraction"):
        summary = encode_images(tiny_model, open_source(image_folder), tmp_path / "store", bad_share=0.1, **options)
    assert len(summary.bad) == 1


def request() -> StoreRequest:
    return StoreRequest(
        source="photos", images=3, keys_hash="a", model_hash="b", model_config={}, scaling={}, transform={},
        transform_hash="c", indices=True, **EncodeConfig(compiled=True, content="lean").stored(),
    )  # fmt: skip


def test_request_of_a_store_reads_back() -> None:
    assert read_request(request().to_json()) == request()
    assert set(request().to_json()) >= {field.name for field in fields(StoredOptions)}


def test_request_without_the_fields_that_came_later_reads_as_their_defaults() -> None:
    found = request().to_json()
    for name in ("content", "indices", "compiled"):
        del found[name]
    assert read_request(found) == replace(request(), content="full", indices=False, compiled=False)


@pytest.mark.parametrize("name", ["dtype", "precision", "latents", "flips", "seed", "batch_size", "shard_size"])
def test_request_without_a_field_of_the_first_version_is_damaged(name: str) -> None:
    found = request().to_json()
    del found[name]
    with pytest.raises(ValueError, match=f"request.{name} is missing"):
        read_request(found)


def test_store_records_the_options_in_a_fixed_order(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    encode_images(
        tiny_model, open_source(image_folder), tmp_path / "store", transform=ImageTransform(size=32), device="cpu"
    )
    assert list(read_json(tmp_path / "store" / "store.json")["request"]) == [
        "source", "images", "keys_hash", "model_hash", "model_config", "scaling", "transform", "transform_hash",
        "dtype", "precision", "latents", "flips", "seed", "batch_size", "shard_size", "content", "indices", "compiled",
    ]  # fmt: skip
