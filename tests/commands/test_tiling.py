"""`--tile`, `--overlap`, `--tiling` and `--size native` of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ldm_ae.cli import main
from ldm_ae.data import ImageTransform, WholeTransform, open_source
from ldm_ae.latents import LatentDataset, LatentStore, encode_images, inspect_store, verify_store
from ldm_ae.models import AUTOENCODERS, KLAutoencoder, Tiled, VQAutoencoder, model_hash
from ldm_ae.quantizers import VQ
from tests.latents.helpers import contents
from tests.models.examples import skip_if_missing
from tests.pictures import smooth_picture

pytestmark = pytest.mark.slow

Captured = pytest.CaptureFixture[str]
HERE = ("--workers", "0", "--device", "cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of three sizes, none of which is a multiple of 4."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(70, 45), (41, 41), (41, 41), (50, 90)]):
        smooth_picture(i, *size).save(folder / f"{i}.png")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def encode(model: Path, images: Path, store: Path, *options: object) -> int:
    return run("encode", model, images, store, *HERE, "--latents", "mode", *options)


def latents(store: Path) -> dict[str, torch.Tensor]:
    data = LatentDataset(LatentStore(store))
    keys = LatentStore(store).good()["key"].to_pylist()
    return {key: data.read(i) for i, key in enumerate(keys)}


def test_native_sizes_make_a_folder_for_each_size(tiny_model_folder: Path, photos: Path, tmp_path: Path) -> None:
    assert encode(tiny_model_folder, photos, tmp_path / "store", "--size", "native") == 0
    store = LatentStore(tmp_path / "store")
    assert store.buckets() == {"40x40": 2, "44x68": 1, "88x48": 1}
    assert store.request.transform | {"size": "native", "resize": "none", "multiple": 4} == store.request.transform
    rows = store.good().to_pylist()
    assert [row["crop"] for row in rows] == [[1, 0, 69, 44], [0, 0, 40, 40], [0, 0, 40, 40], [1, 1, 49, 89]]
    assert verify_store(tmp_path / "store") == []
    assert run("decode", tiny_model_folder, tmp_path / "store", tmp_path / "decoded", "--device", "cpu") == 0
    command = ("reconstruct", tiny_model_folder, photos, tmp_path / "rebuilt", *HERE)
    assert run(*command, "--size", "native") == 0
    for name in ("0.png", "1.png", "3.png"):
        one, other = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("decoded", "rebuilt"))
        assert np.array_equal(one, other), name


def test_native_size_and_whole_agree(tiny_model_folder: Path, photos: Path, tmp_path: Path) -> None:
    options = [["--size", "native"], ["--whole", "--size", "native"], ["--whole", "--resize", "none"]]
    for i, each in enumerate(options):
        assert run("reconstruct", tiny_model_folder, photos, tmp_path / str(i), *HERE, *each) == 0
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


def test_images_smaller_than_the_downsample_factor_are_bad(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    smooth_picture(0, 30, 3).save(photos / "small.png")
    assert encode(tiny_model_folder, photos, tmp_path / "store", "--size", "native") == 2
    assert "small.png: 30x3 is smaller than the crop 28x4" in capsys.readouterr().err
    few = ("--size", "native", "--max-bad-fraction", "0.5")
    assert encode(tiny_model_folder, photos, tmp_path / "store", *few) == 0
    assert LatentStore(tmp_path / "store").bad() == {"small.png": "30x3 is smaller than the crop 28x4"}


def test_store_records_blended_tiles_and_refuses_others(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    store, native = tmp_path / "store", ("--size", "native")
    blended = (*native, "--tile", "32", "--tiling", "blended")
    assert encode(tiny_model_folder, photos, store, *blended) == 0
    assert "tiling: blended tiles of 32x32 pixels that overlap by at least 8" in capsys.readouterr().err
    request = LatentStore(store).request
    assert (request.tile, request.overlap) == (32, 8)
    with safe_open(store / "44x68" / "latents_rank00_shard000.safetensors", "pt") as shard:
        assert (shard.metadata()["tile"], shard.metadata()["overlap"]) == ("32", "8")
    assert verify_store(store) == []
    assert inspect_store(store)["tile"] == 32
    capsys.readouterr()
    assert encode(tiny_model_folder, photos, store, *blended, "--overlap", "8") == 0
    assert "is already complete" in capsys.readouterr().out
    for others, words in [
        ((), "tile 32 (now 0), overlap 8 (now 0)"),
        (("--tile", "32"), "tile 32 (now 0), overlap 8 (now 0)"),  # exact
        (("--tile", "36", "--overlap", "12", "--tiling", "blended"), "tile 32 (now 36), overlap 8 (now 12)"),
    ]:
        assert encode(tiny_model_folder, photos, store, *native, *others) == 2
        assert f"is a store made with {words}; use the store's settings" in capsys.readouterr().err
    whole = tmp_path / "whole"
    assert encode(tiny_model_folder, photos, whole, *native) == 0
    assert encode(tiny_model_folder, photos, whole, *blended) == 2
    assert "is a store made with tile 0 (now 32), overlap 0 (now 8)" in capsys.readouterr().err


def test_exactly_tiled_store_is_the_whole_ones(tiny_model_folder: Path, photos: Path, tmp_path: Path) -> None:
    native = ("--size", "native")
    assert encode(tiny_model_folder, photos, tmp_path / "whole", *native) == 0
    assert encode(tiny_model_folder, photos, tmp_path / "exact", *native, "--tile", "16") == 0
    one, other = (LatentStore(tmp_path / name).request.to_json() for name in ("whole", "exact"))
    assert one == other
    assert "tile" not in one
    found = latents(tmp_path / "exact")
    for key, values in latents(tmp_path / "whole").items():
        assert torch.allclose(found[key], values, atol=1e-4), key  # float32 in another order
    # Either way of computing continues the other's store.
    assert encode(tiny_model_folder, photos, tmp_path / "whole", *native, "--tile", "16") == 0


@pytest.mark.slow
def test_decode_reconstruct_and_evaluate_take_tiles(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    model, tile = tiny_model_folder, ("--tile", "16")
    assert encode(model, photos, tmp_path / "store", "--size", "native") == 0
    for name, options in {"whole": (), "exact": tile, "blended": (*tile, "--tiling", "blended")}.items():
        assert run("decode", model, tmp_path / "store", tmp_path / f"d-{name}", "--device", "cpu", *options) == 0
        assert run("reconstruct", model, photos, tmp_path / f"r-{name}", *HERE, "--size", "native", *options) == 0
        out = ("--out", tmp_path / f"e-{name}", "--metrics", "psnr", "--limit", "3")
        assert run("evaluate", model, photos, *HERE, "--size", "native", *options, *out) == 0
    levels = {name: np.asarray(Image.open(tmp_path / f"d-{name}" / "0.png")) for name in ("whole", "exact", "blended")}
    levels |= {f"r-{name}": np.asarray(Image.open(tmp_path / f"r-{name}" / "0.png")) for name in ("whole", "exact")}
    assert np.abs(levels["whole"].astype(int) - levels["exact"]).max() <= 1  # a level at a rounding border
    assert np.abs(levels["r-whole"].astype(int) - levels["r-exact"]).max() <= 1
    assert levels["blended"].shape == levels["whole"].shape
    reports = {
        name: json.loads((tmp_path / f"e-{name}" / "metrics.json").read_text()) for name in levels if "-" not in name
    }
    protocols = {name: report["protocol"] for name, report in reports.items()}
    assert "tiling" not in protocols["whole"]
    assert protocols["exact"]["tiling"] == "exact, in bands of the size of 16x16 pixels"
    assert protocols["blended"]["tiling"] == "blended tiles of 16x16 pixels that overlap by at least 4"
    assert protocols["whole"]["model"] == protocols["exact"]["model"]
    assert protocols["whole"]["images"]["size"] == "40x40, 68x44"
    assert protocols["whole"]["images"]["transform"]["size"] == "native"
    scores = {name: report["scores"]["psnr"] for name, report in reports.items()}
    assert scores["exact"] == pytest.approx(scores["whole"], abs=1e-3)


def test_tiles_without_moments_or_of_codes_are_encoded(photos: Path, tmp_path: Path) -> None:
    model = VQAutoencoder(quantizer=VQ(16, 4), block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    tiled = Tiled(model.eval(), tile=16, exact=False)
    transform = WholeTransform(None, multiple=2)
    encode_images(tiled, open_source(photos), tmp_path / "store", transform=transform, device="cpu")
    store = LatentStore(tmp_path / "store")
    assert (store.request.tile, store.request.overlap) == (16, 4)
    assert store.buckets() == {"40x40": 2, "44x70": 1, "90x50": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overlap", "8"], "--overlap has no effect without --tile; remove it, or add --tile"),
        (["--tiling", "exact"], "--tiling has no effect without --tile"),
        (["--tile", "16", "--tiling", "exact", "--overlap", "4"], "--overlap has no effect on exact tiling"),
        (["--tile", "18"], "tile must be a multiple of the model's downsample factor 4, got 18; use for example 16"),
        (["--tile", "16", "--overlap", "16"], "overlap must be a multiple of the model's downsample factor 4 from 0"),
        (["--tile", "16", "--compile"], "--compile and exact tiling exclude each other"),
        (["--size", "native", "--compile"], "a compiled encoder needs a limited number of sizes"),
        (["--size", "native", "--resize", "32"], "--size native and --resize exclude each other"),
        (["--size", "native", "--area", "32x32"], "--size native and --area exclude each other"),
        (["--size", "native", "--crop", "adm"], "--size native and --crop exclude each other"),
    ],
)
def test_invalid_tiling_options_are_refused_in_one_line(
    options: list[str], words: str, tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert encode(tiny_model_folder, photos, tmp_path / "store", *options) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len([line for line in said.splitlines() if not line.startswith("tiling: ")]) == 1
    assert not (tmp_path / "store").exists()


def test_size_that_is_not_a_number_is_refused(tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        run("encode", "model", "images", "store", "--size", "big")
    assert "argument --size: expected a number of pixels or native, got 'big'" in capsys.readouterr().err


def test_unused_overlap_is_reported(tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert encode(tiny_model_folder, photos, tmp_path / "store", "--tile", "16", "--overlap", "4", "--size", "32") == 0
    said = capsys.readouterr().err
    assert "tiling: exact, in bands of the size of 16x16 pixels; --overlap has no effect" in said


def test_whole_transform_describes_itself() -> None:
    described = [WholeTransform(shorter, multiple=8).describe() for shorter in (None, 64)]
    assert (described[0]["size"], described[0]["resize"]) == ("native", "none")
    assert (described[1]["size"], described[1]["resize"]) == ("shorter side 64", None)
    assert described[0].keys() == {*ImageTransform(size=8).describe(), "multiple"}


def test_model_in_tiles_has_the_model_hash(tiny_model: KLAutoencoder) -> None:
    assert model_hash(Tiled(tiny_model)) == model_hash(tiny_model)


def test_native_sizes_of_packed_latents_are_multiples_of_the_patch_too(photos: Path, tmp_path: Path) -> None:
    """The example of FLUX.2's class has downsample factor 2 and packs 2 x 2 latents for the diffusion model."""
    AUTOENCODERS["AutoencoderKLFlux2"].example("AutoencoderKLFlux2").save_pretrained(tmp_path / "model")
    assert encode(tmp_path / "model", photos, tmp_path / "store", "--size", "native") == 0
    store = LatentStore(tmp_path / "store")
    assert store.buckets() == {"40x40": 2, "44x68": 1, "88x48": 1}
    for values in latents(tmp_path / "store").values():
        assert store.spec.scale(values[None]).shape[-1] == values.shape[-1] // 2


def test_models_of_one_size_are_refused(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    skip_if_missing("AutoencoderRAE")
    example = AUTOENCODERS["AutoencoderRAE"].example("AutoencoderRAE")
    side, factor = example.latent_spec.image_size, example.latent_spec.downsample_factor
    example.save_pretrained(tmp_path / "model")
    assert encode(tmp_path / "model", photos, tmp_path / "store", "--size", "native") == 2
    assert f"the model takes images of {side}x{side} only; remove --size native" in capsys.readouterr().err
    assert encode(tmp_path / "model", photos, tmp_path / "store", "--tile", factor) == 2
    assert f"AutoencoderRAE takes images of {side}x{side} pixels only and cannot be tiled" in capsys.readouterr().err
