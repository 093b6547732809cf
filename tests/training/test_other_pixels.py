"""Training on images other than RGB, with limits that are measured at the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.models import load_autoencoder
from ldm_ae.training.run import train

pytestmark = pytest.mark.usefixtures("one_parser")


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
