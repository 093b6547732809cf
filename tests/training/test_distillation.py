"""A run that distils: the student's scale, its latents, its resumption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.models import KLAutoencoder, load_autoencoder
from ldm_ae.models.scaling import scale_is_known
from tests.training.common import TINY, files, run

pytestmark = pytest.mark.usefixtures("one_parser")

TERMS = {"latents_distillation": 1.0, "log_variance_distillation": 0.1}


def teacher(folder: Path, *, seed: int = 1) -> str:
    torch.manual_seed(seed)
    model = KLAutoencoder.example("AutoencoderKL")
    model.set_scaling(scaling_factor=0.7, shift_factor=0.1)
    model.save_pretrained(folder)
    return str(folder)


def recipe(images: Path, folder: Path, name: str, **changes: Any) -> Path:
    config = copy.deepcopy(TINY)
    config["data"] |= {"train": str(images), "resolution": 32}
    config["model"] = {
        "class_path": "ldm_ae.models.KLAutoencoder",
        "init_args": {
            "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False,
        },
    }  # fmt: skip
    config["optimizer"] = {"learning_rate": 1e-3}
    config["regularizer"] = {"class_path": "ldm_ae.regularizers.Distillation", "init_args": {"teacher": name}}
    config["objective"] |= {"regularization_weights": TERMS}
    config["training"] |= changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_distilled_run_keeps_the_teachers_scale_and_resumes_exactly(image_folder: Path, tmp_path: Path) -> None:
    name = teacher(tmp_path / "teacher")
    config = recipe(image_folder, tmp_path, name)

    whole = run(config, tmp_path / "whole", "--training.max_steps", "4")
    run(config, tmp_path / "parts", "--training.max_steps", "2")
    parts = run(config, tmp_path / "parts", "--training.max_steps", "4")
    for last in ("model", "checkpoints/step-00000004"):
        assert files(whole / last) == files(parts / last)
    student, expected = load_autoencoder(whole), load_autoencoder(name)
    assert student.latent_spec == expected.latent_spec
    assert scale_is_known(student)
    assert "latents_distillation_loss" in (whole / "metrics.jsonl").read_text()
    teacher(tmp_path / "teacher", seed=2)
    with pytest.raises(UserError, match="regularizer"):
        run(config, tmp_path / "parts", "--training.max_steps", "6")


@pytest.mark.slow
def test_student_learns_the_teachers_latents(image_folder: Path, tmp_path: Path) -> None:
    name = teacher(tmp_path / "teacher")
    config = recipe(image_folder, tmp_path, name, max_steps=60, batch_size=4, accumulation=1)
    student, expected = load_autoencoder(run(config, tmp_path / "run")), load_autoencoder(name)
    torch.manual_seed(0)
    start = KLAutoencoder(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    )
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        target = expected.encode(images).mode()
        errors = [float((model.encode(images).mode() - target).square().mean()) for model in (start, student)]
    assert errors[1] < errors[0] / 3
