"""Runs of a vector autoencoder: likelihoods, schedules of weights and total correlation from the data to the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, open_source
from ldm_ae.images.transforms import ImageTransform
from ldm_ae.io.tensor_files import read_tensors
from ldm_ae.losses import DiscretizedLogistic, Gaussian
from ldm_ae.models import load_autoencoder
from tests.training.common import files, run

pytestmark = pytest.mark.usefixtures("one_parser")

STEPS = "--training.max_steps"


def write_recipe(path: Path, **objective: Any) -> Path:
    recipe = {
        "model": {
            "class_path": "ldm_ae.models.VectorAutoencoder",
            "init_args": {"pixels": "grey", "image_size": 16, "latent_channels": 2, "architecture": "mlp",
                          "hidden": [8]},
        },
        "data": {"train": "sprites:12", "resolution": 16, "flip": False, "workers": 0, "validation_images": 0},
        "objective": {"reduction": "ldm", "reconstruction": "gaussian"} | objective,
        "training": {"max_steps": 6, "batch_size": 4, "precision": "fp32", "log_every": 1, "sample_every": 9,
                     "checkpoint_every": 3},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(recipe))
    return path


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("kind") == "train"]


def test_resumed_run_has_the_schedule_the_scale_and_the_discriminator(tmp_path: Path) -> None:
    config = write_recipe(
        tmp_path / "recipe.yaml",
        regularization_weights={"kl": 2.0, "total_correlation": 1.0, "density_ratio": 1.0},
        regularization_schedules={"kl": {"warmup_steps": 2, "cycle_steps": 4}},
    )
    more = ("--regularizer", "factor-vae", "--regularizer.width", "8", "--regularizer.depth", "1")
    complete = run(config, tmp_path / "complete", *more)
    run(config, tmp_path / "parts", *more, STEPS, "3")
    parts = run(config, tmp_path / "parts", *more, STEPS, "6")
    for last in ("model", "checkpoints/step-00000006"):
        assert files(complete / last) == files(parts / last)
    assert [line["kl_weight"] for line in log(parts)] == [0, 1, 2, 2, 0, 1]
    tensors = read_tensors(complete / "checkpoints/step-00000006/objective.safetensors")
    scale = math.exp(float(tensors["likelihood.log_variance"]) / 2)
    assert scale != pytest.approx(0.25, rel=1e-6)
    for place in (complete, complete / "checkpoints/step-00000006"):
        likelihood = load_autoencoder(place).likelihood
        assert isinstance(likelihood, Gaussian)
        assert likelihood.init_args["scale"] == pytest.approx(scale, rel=1e-6)
    assert log(parts)[-1]["log_variance"] == pytest.approx(2 * math.log(scale), rel=1e-5)
    with pytest.raises(UserError, match=r"another learned_scale \(Gaussian, now DiscretizedLogistic\)"):
        run(config, tmp_path / "parts", *more, STEPS, "7", "--objective.reconstruction", "logistic")


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
def test_scale_continues_in_the_next_phase_and_from_a_pretrained_model(kind: str, tmp_path: Path) -> None:
    """At a learning rate of nearly 0 the scale of the later training is that of the earlier one."""
    config = write_recipe(tmp_path / "recipe.yaml", reconstruction=kind, regularization_weights={"kl": 1.0})
    still = {"optimizer": {"learning_rate": 1e-30}, "training": {"max_steps": 1}}
    phases = tmp_path / "phases.yaml"
    phases.write_text(yaml.safe_dump({"phases": [{"training": {"max_steps": 3}}, still]}))

    def scale(folder: Path) -> float:
        likelihood = load_autoencoder(folder).likelihood
        assert likelihood is not None
        return float(likelihood.init_args["scale"])

    first = run(config, tmp_path / "first", "--config", str(phases))
    learned = scale(first / "phases" / "1")
    assert learned != pytest.approx({"gaussian": 0.25, "logistic": 0.1}[kind], rel=1e-6)
    assert scale(first) == learned
    again = ("--model.init_args.pretrained", str(first), "--optimizer.learning_rate", "1e-30", STEPS, "1")
    assert scale(run(config, tmp_path / "second", *again)) == pytest.approx(learned, rel=1e-6)
    chosen = run(config, tmp_path / "third", *again, "--objective.reconstruction.scale", "0.5")
    assert scale(chosen) == pytest.approx(0.5, rel=1e-6)


def test_nll_and_kl_of_the_log_are_the_negative_elbo_of_the_images(tmp_path: Path) -> None:
    """A run of one step with the learning rate 0: its log against the saved model's own terms, whose mode is drawn."""
    config = write_recipe(tmp_path / "recipe.yaml", reconstruction="logistic", regularization_weights={"kl": 1.0})
    more = ("--regularizer", "mode", "--optimizer.learning_rate", "1e-12", "--training.batch_size", "12", STEPS, "1")
    folder = run(config, tmp_path / "run", *more)
    model = load_autoencoder(folder)
    likelihood = model.likelihood
    assert isinstance(likelihood, DiscretizedLogistic)

    loader = EvaluationLoader(
        open_source("sprites:12"), ImageTransform(size=16, pixels=model.pixel_spec), batch_size=12
    )
    (batch,) = list(loader)
    posterior = model.encode(batch.pixel_values)
    with torch.no_grad():
        log_prob = likelihood.log_prob(model.decode(posterior.mode()), batch.pixel_values)
    elbo = (log_prob - posterior.regularization()["kl"]).mean()
    (line,) = log(folder)
    assert line["nll_loss"] + line["kl_loss"] == pytest.approx(-float(elbo), rel=1e-4)


def test_weights_without_which_a_regularizer_cannot_learn_are_required(tmp_path: Path) -> None:
    config = write_recipe(tmp_path / "recipe.yaml", regularization_weights={"total_correlation": 1.0})
    with pytest.raises(UserError, match="no weight for 'density_ratio', without which FactorVAE does not learn; add"):
        run(config, tmp_path / "run", "--regularizer", "factor-vae")


def test_total_correlation_takes_the_number_of_images_from_the_data(tmp_path: Path) -> None:
    config = write_recipe(tmp_path / "recipe.yaml", regularization_weights={"kl": 1.0, "total_correlation": 5.0})
    folder = run(config, tmp_path / "run", "--regularizer", "beta-tcvae", STEPS, "1")
    (line,) = log(folder)
    assert math.isfinite(line["total_correlation_loss"])
