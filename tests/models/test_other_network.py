"""Every command supports a network class of another package that is not an AutoencoderKL and has no last layer."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentDataset
from ldm_ae.models import load_autoencoder
from tests.models.patch_linear import PatchLinear, PatchLinearAutoencoder
from tests.training.common import TINY, run

pytestmark = pytest.mark.usefixtures("patch_linear")
SMALL = ("--size", "16", "--device", "cpu", "--workers", "0")


@pytest.fixture
def config(tmp_path: Path, image_folder: Path) -> Path:
    content = copy.deepcopy(TINY)
    content["model"] = {"class_path": "tests.models.patch_linear.PatchLinearAutoencoder", "init_args": {"width": 5}}
    content["data"]["train"] = str(image_folder)
    content["objective"]["regularization_weights"] = {}
    content["objective"]["adaptive_gan_weight"] = False
    content["training"]["max_steps"] = 1
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    PatchLinearAutoencoder().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_other_network_is_trained(config: Path, tmp_path: Path) -> None:
    now = ("--objective.discriminator_warmup_steps", "0", "--objective.discriminator_start", "0")
    out = run(config, tmp_path / "run", *now)
    trained = load_autoencoder(out)
    assert isinstance(trained, PatchLinearAutoencoder)
    assert (trained.latent_spec.channels, trained.sample_size) == (5, 16)
    assert trained.latent_spec.scaling_factor != 1.0  # measured on the validation images
    (line,) = [line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
               if line["kind"] == "train"]  # fmt: skip
    assert {"rec_loss", "generator_loss", "discriminator_loss"} <= line.keys()
    assert "adaptive_weight" not in line
    PatchLinear.from_pretrained(out / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("objective.adaptive_gan_weight", "true", "decoder's last layer, and PatchLinear declares none; set it"),
        ("training.gradient_checkpointing", "true", "PatchLinear does not support it; set it to false"),
        ("training.compile", "true", "PatchLinear declares no parts to compile; set it to false"),
    ],
)
def test_undeclared_features_are_refused_by_name(
    config: Path, tmp_path: Path, option: str, value: str, words: str
) -> None:
    with pytest.raises(UserError, match=f"{option}.*{words}") as error:
        run(config, tmp_path / "run", f"--{option}", value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_other_network_encodes_and_decodes(folder: Path, image_folder: Path, tmp_path: Path) -> None:
    store, decoded = tmp_path / "store", tmp_path / "decoded"
    assert main(["encode", str(folder), str(image_folder), str(store), *SMALL]) == 0
    assert main(["decode", str(folder), str(store), str(decoded), "--device", "cpu"]) == 0
    (path,) = decoded.rglob("000.png")
    with Image.open(path) as image:
        found = np.asarray(image).astype(int)
    data = LatentDataset(store)
    (position,) = [i for i in range(len(data)) if data[i]["key"].endswith("000.png")]
    latents = data.read(position)
    assert latents.shape == (6, 4, 4)
    expected = ((load_autoencoder(folder).decode(latents[None])[0].clamp(-1, 1) + 1) * 127.5).round()
    assert abs(torch.from_numpy(found).permute(2, 0, 1) - expected).max() <= 1  # a value between two levels may tip


def test_lean_store_is_refused_without_moments_or_indices(
    folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["encode", str(folder), str(image_folder), str(tmp_path / "store"), *SMALL, "--store", "lean"])
    assert status != 0
    assert "a lean store holds moments or indices, and PatchLinear has none" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_other_network_is_evaluated(folder: Path, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    assert main(["evaluate", str(folder), str(image_folder), *SMALL, "--out", str(out), "--precision", "fp16"]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert found["protocol"]["model"]["class"] == "PatchLinearAutoencoder"
    assert found["scores"]["psnr"] > 0


def test_other_network_is_exported(
    folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(folder), str(out), "--images", str(image_folder), *SMALL]) == 0
    exported = PatchLinear.from_pretrained(out)
    assert exported.config.scaling_factor == load_autoencoder(out).latent_spec.scaling_factor != 1.0
    assert torch.equal(exported.up.weight, load_autoencoder(folder).net.up.weight)
    assert main(["export", str(folder), str(tmp_path / "ldm"), "--format", "ldm"]) != 0
    assert "not a PatchLinear" in capsys.readouterr().err
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "PatchLinear"
