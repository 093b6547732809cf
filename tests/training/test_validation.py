"""Which metrics a validation computes, and by which one the best checkpoint is chosen."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.frechet import Frechet
from ldm_ae.evaluation.metrics.interface import ImageMetric
from ldm_ae.evaluation.metrics.msssim import MSSSIM
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.training import validation
from ldm_ae.training.validation import Validation, check_best, choose_metrics
from tests.evaluation.stubs import MeanDistance, PixelFeatures
from tests.training.common import run


class MeanError(ImageMetric):
    name = "mean_error"
    direction = "lower"

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return (reconstructions - pixel_values).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("name", "best", "names"),
    [
        ("psnr", "psnr", ["psnr", "ssim", "mean_distance"]),
        ("ssim", "ssim", ["psnr", "ssim", "mean_distance"]),
        ("perceptual", "mean_distance", ["psnr", "ssim", "mean_distance"]),
        ("msssim", "msssim", ["psnr", "ssim", "mean_distance", "msssim"]),
    ],
)
def test_best_metric_is_among_the_computed_ones(name: str, best: str, names: list[str]) -> None:
    chosen = choose_metrics(name, MeanDistance())
    assert [metric.name for metric in chosen.metrics] == names
    assert chosen.best.name == best
    assert chosen.best in chosen.metrics
    assert chosen.added == (name == "msssim")


def test_scores_are_ranked_in_the_direction_of_the_metric() -> None:
    assert choose_metrics("psnr", None).rank({"psnr": 20.0}) == 20.0
    assert choose_metrics("perceptual", MeanDistance()).rank({"mean_distance": 0.25}) == -0.25
    with pytest.raises(UserError, match=r"training\.best_metric is 'psnr', which has no value for this model"):
        choose_metrics("psnr", None).rank({"ssim": 1.0})


def test_invalid_best_metrics_are_refused() -> None:
    with pytest.raises(UserError, match=r"best_metric is 'perceptual', but objective\.perceptual is not set"):
        choose_metrics("perceptual", None)
    with pytest.raises(UserError, match=r"training\.best_metric is 'rate', for which neither higher nor lower"):
        choose_metrics("rate", None)
    with pytest.raises(
        UserError, match=r"training\.best_metric: no metric is named 'sim'; .*msssim.*psnr.*ssim"
    ) as error:
        choose_metrics("sim", None)
    assert "codebook" not in str(error.value), "only what has a direction is offered"


def test_images_too_small_for_the_best_metric_are_refused_before_training() -> None:
    with pytest.raises(
        UserError, match=r"'msssim': MS-SSIM needs .* 176x176 pixels, got 64x64\. Raise data\.resolution"
    ):
        check_best(choose_metrics("msssim", None), resolution=64, images=8)
    check_best(choose_metrics("msssim", None), resolution=176, images=1)
    frechet = Frechet(PixelFeatures())
    chosen = Validation([PSNR(), frechet], frechet, added=True)
    with pytest.raises(UserError, match=r"needs at least 2 images; data\.validation_images is 1"):
        check_best(chosen, resolution=64, images=1)
    check_best(chosen, resolution=64, images=2)
    check_best(Validation([MSSSIM()], MSSSIM(), added=False), resolution=64, images=1)  # tried elsewhere


@pytest.mark.slow
def test_run_keeps_the_best_checkpoint_by_a_registered_metric(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "METRICS", {"mean_error": MeanError})
    out = run(tiny_config, tmp_path / "run", "--training.best_metric", "mean_error")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    errors = {line["step"]: line["mean_error"] for line in lines if line["kind"] == "validation"}
    assert len(errors) == 2
    checkpoint = sorted((out / "checkpoints").iterdir())[-1]
    best = json.loads((checkpoint / "state.json").read_text())["best"]
    step = min(errors, key=lambda step: errors[step])
    assert best == {"step": step, "score": -errors[step], "metric": "mean_error", "value": errors[step]}
    assert os.readlink(out / "checkpoints" / "best") == f"step-{step:08d}"
    assert torch.tensor(list(errors.values())).gt(0).all()
    # By another metric, scores of the first one do not count.
    run(tiny_config, out, "--training.best_metric", "psnr", "--training.max_steps", "7")
    newest = sorted((out / "checkpoints").iterdir())[-1]
    best = json.loads((newest / "state.json").read_text())["best"]
    assert (best["step"], best["metric"], best["score"]) == (7, "psnr", best["value"])


def test_run_with_an_unusable_best_metric_writes_nothing(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MS-SSIM needs images of at least 176x176 pixels, got 16x16"):
        run(tiny_config, tmp_path / "run", "--training.best_metric", "msssim")
    assert not (tmp_path / "run").exists()
