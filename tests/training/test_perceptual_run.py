"""Perceptual losses of a run by YAML: ViTok-v2's objective, lists of losses, what a run records of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.training.configuration.parsing import parse_config
from tests.training.common import run

pytest.importorskip("transformers")

VITOK = """
objective:
  reduction: mean
  reconstruction: charbonnier
  perceptual:
    class_path: sum
    init_args:
      losses:
        - ssim
        - class_path: deep-features
          init_args:
            tile: 256
            features:
              class_path: dinov2
              init_args:
                weights: null
                normalized: false
                layers: [0, 1, 2]
                architecture: {hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2, patch_size: 8}
      weights: [0.1, 500]
  regularization_weights: {kl: 1.0e-8}
"""
"""Charbonnier + 0.1 (1 - SSIM) + 500 DINO, without a discriminator, over a small random DINO."""


@pytest.mark.slow
def test_objective_of_vitok_v2_trains_and_names_what_it_used(tiny_config: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(tiny_config.read_text())
    recipe["objective"] = yaml.safe_load(VITOK)["objective"]
    recipe.pop("discriminator", None)
    (tmp_path / "vitok.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "run"
    options = ["--training.max_steps", "2", "--training.log_every", "1", "--training.validate_every", "2"]
    run(tmp_path / "vitok.yaml", out, *options, "--training.best_metric", "perceptual")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "rec_loss" in line]
    assert steps
    for line in steps:
        terms = 0.1 * line["ssim_distance_loss"] + 500 * line["dinov2_features_loss"]
        assert line["perceptual_loss"] == pytest.approx(terms, rel=1e-4)
        assert line["nll_loss"] == pytest.approx(line["rec_loss"] + terms, rel=1e-4)
    name = "0.1xssim_distance+500xdinov2_features"
    assert any(name in line for line in lines)  # the validation
    recorded = yaml.safe_load((out / "config.yaml").read_text())["objective"]["perceptual"]
    assert recorded["class_path"] == "ldm_ae.losses.WeightedSum"
    classes = [loss["class_path"] for loss in recorded["init_args"]["losses"]]
    assert classes == ["ldm_ae.losses.SSIMDistance", "ldm_ae.losses.DeepFeatures"]
    features = recorded["init_args"]["losses"][1]["init_args"]["features"]
    assert features["class_path"] == "ldm_ae.features.DINOv2"
    environment = json.loads((out / "environment.json").read_text())
    assert environment["perceptual"] == (
        "0.1 x ssim_distance, 500 x dinov2_features of DINOv2 (random weights, seed 0)"
    )
    run(out / "config.yaml", out, "--training.max_steps", "3")  # what a run records opens again


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_losses_and_features_are_named_on_the_command_line() -> None:
    required = ["--model", "kl", "--out", "x", "--data.train", "y"]
    config = parse_config([*required, "--objective.perceptual", "deep-features", "--objective.perceptual.features",
                           "efficientnet-lite0", "--objective.perceptual.features.layers", "[1, 2]"])  # fmt: skip
    assert config.objective.perceptual.class_path == "ldm_ae.losses.DeepFeatures"
    features = config.objective.perceptual.init_args.features
    assert features.class_path == "ldm_ae.features.EfficientNetLite0"
    assert features.init_args.layers == [1, 2]
    config = parse_config([*required, "--objective.perceptual", "sum", "--objective.perceptual.losses",
                           "[ssim, st-lpips]", "--objective.perceptual.weights", "[0.1, 1]"])  # fmt: skip
    found = [loss.class_path for loss in config.objective.perceptual.init_args.losses]
    assert found == ["ldm_ae.losses.SSIMDistance", "ldm_ae.losses.ShiftTolerantLPIPS"]
    for value, message in (
        ("[ssim, lpipz]", "no perceptual loss is named 'lpipz'"),
        ("[side_effect.Net]", "no perceptual loss is named 'side_effect.Net'"),
    ):
        with pytest.raises(UserError, match=message):
            parse_config([*required, "--objective.perceptual", "sum", "--objective.perceptual.losses", value])
    with pytest.raises(UserError, match="no feature network is named 'efficientnet'; did you mean EfficientNetLite0"):
        parse_config([*required, "--objective.perceptual", "gram", "--objective.perceptual.features", "efficientnet"])
