"""Training on images other than RGB, with limits that are measured at the start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.models import load_autoencoder
from ldm_ae.training.run import train

pytestmark = pytest.mark.usefixtures("one_parser")
COMPARED = ("step", "rec_loss", "perceptual_loss", "generator_loss", "discriminator_loss", "kl_loss", "psnr", "ssim")


def test_training_measures_quantiles_once_and_records_them(tmp_path: Path) -> None:
    draw, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for number in range(6):
        np.save(images / f"{number}.npy", draw.uniform(200, 800, (2, 20, 24)).astype(np.uint16))
    options = {
        "pixels": {"channels": 2, "bits": 16, "quantiles": [0.0, 1.0]}, "block_out_channels": [4, 8],
        "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False,
    }  # fmt: skip
    recipe = {
        "out": str(tmp_path / "run"),
        "model": {"class_path": "ldm_ae.models.KLAutoencoder", "init_args": options},
        "data": {"train": str(images), "resolution": 16, "validation_images": 2, "workers": 0},
        "training": {"max_steps": 1, "batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = train(["--config", str(tmp_path / "recipe.yaml")])
    pixels = load_autoencoder(out).pixel_spec
    assert (pixels.channels, pixels.bits, pixels.clip) == (2, 16, True)
    assert 200 <= pixels.low[0] < 205
    assert 795 < pixels.high[1] <= 800
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["model"]["init_args"]["pixels"] == pixels.to_json()
    assert "psnr" in (out / "metrics.jsonl").read_text()
    options["pixels"] = {**pixels.to_json(), "high": 900}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="pixels"):
        train(["--config", str(tmp_path / "recipe.yaml"), "--training.max_steps", "2"])


@pytest.mark.slow
def test_training_does_not_depend_on_how_missing_data_is_marked(tmp_path: Path) -> None:
    draw, runs = np.random.default_rng(0), []
    arrays = [draw.uniform(-10, 30, (2, 40, 40)).astype(np.float32) for _ in range(6)]
    where = [draw.random((2, 40, 40)) < 0.1 for _ in arrays]
    for name, missing in (("sentinel", -9999.0), ("nan", float("nan"))):
        images = tmp_path / f"{name} images"
        images.mkdir()
        for number, (array, gaps) in enumerate(zip(arrays, where, strict=True)):
            gaps[:, :15, :20] = number % 2 == 0  # a corner of every second image has no data
            np.save(images / f"{number}.npy", np.where(gaps, np.float32(missing), array))
        recipe = {
            "out": str(tmp_path / name),
            "model": {
                "class_path": "KLAutoencoder",
                "init_args": {
                    "pixels": {"channels": 2, "bits": 0, "low": -10, "high": 30, "missing": str(missing)},
                    "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2,
                    "mid_block_add_attention": False,
                },
            },
            "data": {"train": str(images), "resolution": 32, "validation_images": 2, "workers": 0},
            "regularizer": {"class_path": "EQVAE", "init_args": {"smallest_scale": 0.5}},
            "objective": {
                "perceptual": {"class_path": "SSIMDistance"}, "perceptual_weight": 0.1, "discriminator_start": 0,
            },
            "discriminator": {"class_path": "PatchDiscriminator", "init_args": {"n_layers": 1, "ndf": 4}},
            "training": {"max_steps": 2, "batch_size": 2, "log_every": 1, "validate_every": 2},
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        out = train(["--config", str(tmp_path / "recipe.yaml")])
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        runs.append([{key: value for key, value in line.items() if key in COMPARED} for line in lines])
        assert {"rec_loss", "discriminator_loss", "psnr"} <= {key for line in runs[-1] for key in line}
        assert np.isfinite([value for line in runs[-1] for value in line.values()]).all()
    assert runs[0] == runs[1]
