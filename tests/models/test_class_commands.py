"""Every network class goes through every command, as the table in docs/MODELS.md says."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm_ae.cli import main
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.models.adapters import AUTOENCODERS
from tests.models.examples import images, skip_if_missing, some_scale
from tests.pictures import write_class_folders
from tests.training.common import TINY, run

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "MODELS.md"
COLUMNS = ("open", "encode", "evaluate", "decode", "export", "fine-tune", "tile")


def table() -> dict[str, dict[str, str]]:
    """The cells of the page's first table, by class and command."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| *\w+ *\|( *(yes|decoder|exact|blended|no) *\|)+$", line)
    ]  # fmt: skip
    return {name: dict(zip(COLUMNS, cells, strict=True)) for name, *cells in rows}


TABLE = table()


@pytest.fixture(params=TABLE)
def name(request: pytest.FixtureRequest) -> str:
    skip_if_missing(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of each class with a scale that is not 1, where it stores one; made once for all commands."""
    root = tmp_path_factory.mktemp("models")

    def of_class(name: str) -> Path:
        if not (root / name).exists():
            torch.manual_seed(4)
            model = AUTOENCODERS[name].example(name)
            model.set_scaling(**some_scale(model))
            model.save_pretrained(root / name)
        return root / name

    return of_class


@pytest.fixture
def folder(name: str, folders: Callable[[str], Path]) -> Path:
    return folders(name)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands read it."""
    return write_class_folders(tmp_path_factory.mktemp("photos") / "images")


@pytest.fixture
def model(folder: Path) -> Autoencoder:
    return load_autoencoder(folder)


@pytest.fixture
def small(model: Autoencoder) -> list[str]:
    return ["--size", str(model.latent_spec.image_size or 16), "--device", "cpu", "--workers", "0"]


def reconstruction(model: Autoencoder, latents: torch.Tensor) -> np.ndarray:
    """(H, W, 3) levels from 0 to 255."""
    with torch.no_grad():
        image = model.decode(latents[None])[0].clamp(-1, 1)
    return ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(float)


def test_the_table_has_every_class_of_the_package() -> None:
    assert {*TABLE} == {name for name in AUTOENCODERS if AUTOENCODERS[name].__module__.startswith("ldm_ae.")}
    assert all([*cells] == [*COLUMNS] for cells in TABLE.values())


def test_open(name: str, folder: Path, model: Autoencoder, capsys: pytest.CaptureFixture[str]) -> None:
    assert TABLE[name]["open"] == "yes"
    assert main(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    spec = model.latent_spec
    assert (found["class"], found["latent_channels"]) == (name, spec.channels)
    assert found["downsample_factor"] == spec.downsample_factor
    assert found.get("patch_size", 1) == spec.patch_size
    assert found.get("image_size") == spec.image_size
    assert found["scale"] == ("measured" if model.scale_keys else "none: diffusion models see the latents as they are")
    assert found["problems"] == []


def test_encode_and_decode(
    name: str, folder: Path, model: Autoencoder, small: list[str], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert TABLE[name]["encode"] == TABLE[name]["decode"] == "yes"
    store, decoded = tmp_path / "store", tmp_path / "decoded"
    assert main(["encode", str(folder), str(image_folder), str(store), *small, "--no-flips"]) == 0
    assert verify_store(store) == []
    opened, data = LatentStore(store), LatentDataset(store)
    assert opened.spec == model.latent_spec
    assert ("moments" in data.tensor_names) == model.has_moments
    assert ("indices" in data.tensor_names) == (model.codebook is not None)
    assert opened.request.deterministic == (not model.has_moments and model.codebook is None)
    capsys.readouterr()
    assert main(["inspect", str(store), "--json"]) == 0
    assert ("moments" in json.loads(capsys.readouterr().out)) == opened.request.deterministic
    assert LatentDataset(store, spec=opened.spec)[0]["latents"].shape[0] == model.latent_spec.scaled_channels
    assert main(["decode", str(folder), str(store), str(decoded), "--device", "cpu"]) == 0
    (path,) = decoded.rglob("000.png")
    (position,) = [i for i in range(len(data)) if data[i]["key"].endswith("000.png")]
    # A value between two levels may round to either.
    assert np.abs(read(path) - reconstruction(model, data.read(position))).max() <= 1


def test_reconstruct(
    name: str, folder: Path, model: Autoencoder, small: list[str], image_folder: Path, tmp_path: Path
) -> None:
    photo = next(iter(sorted(image_folder.rglob("*.png"))))
    assert main(["reconstruct", str(folder), str(photo), str(tmp_path / "out"), *small]) == 0
    (path,) = [path for path in (tmp_path / "out").rglob("*.png") if path.stem.startswith(photo.stem)]
    size = int(small[1])
    latents = model.encode_images(photo, size=size)
    assert read(path).shape == (size, size, 3)
    assert np.abs(read(path) - reconstruction(model, latents[0])).max() <= 1


def test_tile(
    name: str, folder: Path, model: Autoencoder, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of twice the tile's side."""
    photo, factor = next(iter(sorted(image_folder.rglob("*.png")))), model.latent_spec.downsample_factor
    size, method = ["--size", str(4 * factor), "--device", "cpu", "--workers", "0"], TABLE[name]["tile"]
    command = ["reconstruct", str(folder), str(photo)]
    status = main([*command, str(tmp_path / "tiled"), *size, "--tile", str(2 * factor)])
    said = capsys.readouterr().err
    if method == "no":
        assert status == 2
        assert "pixels only and cannot be tiled" in said
        return
    assert status == 0
    assert f"tiling: {method}" in said
    assert main([*command, str(tmp_path / "whole"), *size]) == 0
    whole, tiled = (read(next(iter((tmp_path / out).rglob("*.png")))) for out in ("whole", "tiled"))
    assert tiled.shape == whole.shape
    if method == "exact":
        assert np.abs(tiled - whole).max() <= 1  # a value between two levels may round to either


def test_evaluate(
    name: str, folder: Path, model: Autoencoder, small: list[str], image_folder: Path, tmp_path: Path
) -> None:
    assert TABLE[name]["evaluate"] == "yes"
    out = tmp_path / "evaluation"
    options = ["--metrics", "psnr", "ssim", "latents"]
    assert main(["evaluate", str(folder), str(image_folder), *small, "--out", str(out), *options]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert found["protocol"]["model"]["class"] == type(model).__name__
    assert 0 < found["scores"]["psnr"] < 40


def test_export(
    name: str, folder: Path, model: Autoencoder, small: list[str], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert TABLE[name]["export"] == "yes"
    out, measured = tmp_path / "out", tmp_path / "measured"
    assert main(["export", str(folder), str(out)]) == 0
    network = type(model.net).from_pretrained(out).eval()  # diffusers' own way to open it
    exported = AUTOENCODERS[name].around(network)
    assert exported.latent_spec == model.latent_spec
    pixel_values = torch.rand(2, 3, int(small[1]), int(small[1])) * 2 - 1
    with torch.no_grad():
        latents = model.encode(pixel_values).mode()
        # Attention over weights at other addresses differs in the last bit.
        torch.testing.assert_close(exported.encode(pixel_values).mode(), latents)
        torch.testing.assert_close(exported.decode(latents), model.decode(latents))
    capsys.readouterr()
    options = ["--images", str(image_folder), "--scaling", "measure", *small]
    status = main(["export", str(folder), str(measured), *options])
    if not model.scale_keys:
        assert status == 2
        assert f"{name} stores no scale of its own" in capsys.readouterr().err
        return
    assert status == 0
    after = load_autoencoder(measured).latent_spec
    assert after != model.latent_spec
    assert (after.latents_std is None) == (model.latent_spec.latents_std is None)


def test_fine_tune(
    name: str, folder: Path, model: Autoencoder, small: list[str], image_folder: Path, tmp_path: Path
) -> None:
    assert TABLE[name]["fine-tune"] == ("decoder" if "encoder." in model.frozen_names else "yes")
    content: dict[str, Any] = copy.deepcopy(TINY)
    content["model"] = {
        "class_path": f"ldm_ae.models.{type(model).__name__}", "init_args": {"pretrained": str(folder)}
    }  # fmt: skip
    content["data"] |= {"train": str(image_folder), "resolution": int(small[1])}
    terms = dict.fromkeys(model.encode(images(model)).regularization(), 1e-6)
    content["objective"] |= {
        "regularization_weights": terms, "perceptual": None, "discriminator_start": 0, "discriminator_warmup_steps": 0,
        "adaptive_gan_weight": model.last_layer is not None,
    }  # fmt: skip
    content["training"] |= {
        "max_steps": 2, "accumulation": 1, "log_every": 1, "validate_every": 2, "sample_every": 2,
        "checkpoint_every": 2,
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    out = run(config, tmp_path / "run", "--optimizer.warmup_steps", "0")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(line["adaptive_weight"] >= 0 for line in lines if line["kind"] == "train")
    trained = load_autoencoder(out)
    assert type(trained) is type(model)
    changed = {key for key, value in trained.net.named_parameters()
               if not torch.equal(value, model.net.get_parameter(key))}  # fmt: skip
    assert changed
    assert not any(key.startswith(model.frozen_names) for key in changed)
    assert trained.last_layer is None or any(
        trained.net.get_parameter(key) is trained.last_layer for key in changed
    )  # fmt: skip
    if model.scale_keys and not model.frozen_names:
        assert trained.latent_spec != model.latent_spec  # measured again on the validation images
