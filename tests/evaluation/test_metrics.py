"""The interface of metrics: explanations, failures that skip only one metric, and metrics of plugins."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import evaluate, named_metrics, write_report
from ldm_ae.evaluation.metric_sets import COMPARED
from ldm_ae.evaluation.metrics import METRICS
from ldm_ae.evaluation.metrics.codebook import Codebook
from ldm_ae.evaluation.metrics.cost import Cost
from ldm_ae.evaluation.metrics.frechet import Frechet
from ldm_ae.evaluation.metrics.interface import (
    CannotScoreError,
    ImageMetric,
    Metric,
    Needs,
    ScoreInfo,
    Setting,
)
from ldm_ae.evaluation.metrics.interpolation import Interpolation
from ldm_ae.evaluation.metrics.msssim import MSSSIM
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.evaluation.metrics.rate import Rate
from ldm_ae.evaluation.metrics.ssim import SSIM
from ldm_ae.evaluation.metrics.storage import Storage
from ldm_ae.evaluation.metrics.text import SIZES
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.models import KLAutoencoder
from tests.evaluation.stubs import IdentityAutoencoder, Loader, PixelFeatures, loader, pictures
from tests.evaluation.test_report import Page
from tests.plugins import write_plugin
from tests.processes import CLI, run_script

WEIGHTLESS = (
    "active_latent_channels", "active_units", "channel_correlation", "ciede2000", "clusters", "codebook", "cost",
    "count", "elbo", "equivariance", "iwae", "knn", "label_efficiency", "latent_spectrum", "latents", "lattice",
    "linear_probe", "msssim", "mutual_information", "noise_tolerance", "psnr", "rate", "ssim", "storage", "text_error",
)  # fmt: skip

PLUGIN = """
    from ldm_ae.evaluation import ImageMetric


    class WorstPixel(ImageMetric):
        name = "worst_pixel"
        label = "Worst <pixel>"
        direction = "lower"
        unit = "levels"
        explanation = "The largest error of any colour of any pixel."
        decimals = 1

        def per_image(self, reconstructions, pixel_values):
            return (reconstructions - pixel_values).abs().amax(dim=(1, 2, 3)) * 127.5
"""


def run(model, metrics: list[Metric], images: Loader | None = None) -> Evaluation:
    return evaluate(
        model, images or loader(), source="pictures", transform_description={}, model_name="tiny", metrics=metrics,
        device="cpu", pictures=2,
    )  # fmt: skip


class Blueness(ImageMetric):
    name = "blueness"
    direction = "lower"

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        return reconstructions[:, 2].mean(dim=(1, 2))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_has_a_label_and_an_explanation(name: str) -> None:
    cls = METRICS[name]
    assert cls.direction in ("higher", "lower", "")
    infos = [*cls.scores.values()] or [cls]
    # The label and explanation of a network's metric may be its instance's.
    if name in WEIGHTLESS:
        assert all(info.label and info.explanation.endswith(".") for info in infos)
        assert set(cls().scores) == set(cls.scores)


def test_scores_have_the_group_of_their_metric_unless_they_state_another() -> None:
    class Loops(Codebook):
        scores = {"loops": ScoreInfo(label="Loops"), "price": ScoreInfo(label="Price", group="cost")}  # noqa: RUF012

    assert {key: Loops().info(key).group for key in ("codebook", "loops", "price", "other")} == {
        "codebook": "latents", "loops": "latents", "price": "cost", "other": "latents"
    }  # fmt: skip
    metrics = named_metrics(["compare"], perceptual="none", features="none")
    groups = {key: metric.info(key).group for metric in metrics for key in [*metric.scores] or [metric.name]}
    assert {key for key, group in groups.items() if group == "reconstruction"} == {
        "psnr", "ssim", "msssim", "count", "text_error", *(f"text_error_{size}" for size in SIZES)
    }  # fmt: skip
    assert {key for key, group in groups.items() if group == "rate"} == {
        "kl_bits_per_pixel", "bits_per_pixel", "prior_bits_per_pixel", "entropy_bits_per_pixel", *Storage.scores
    }  # fmt: skip
    assert {key for key, group in groups.items() if group == "cost"} == {*Cost.scores}


def test_details_of_metrics_are_in_metrics_json(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    class Curve(Blueness):
        name = "curve"

        def details(self) -> dict[str, list[float]]:
            return {"values": self._values["curve"]}

    class Curveless(Curve):
        name = "curveless"

        def compute(self) -> dict[str, float]:
            raise CannotScoreError("no curve")

    result = run(tiny_model, [Curve(), PSNR(), Curveless()])
    assert result.details == {"curve": {"values": [row.scores["curve"] for row in result.images]}}
    write_report(result, tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert found["details"] == result.details
    assert found["score_infos"]["psnr"]["group"] == "reconstruction"


@pytest.mark.parametrize("name", [name for name in WEIGHTLESS if name != "cost"])  # no time is the same twice
def test_reset_clears_a_metrics_state(name: str) -> None:
    images = pictures(4, 176)
    model = IdentityAutoencoder()
    setting = Setting(model=model, device=torch.device("cpu"))
    scores = []
    metric = METRICS[name]()
    for count in (4, 2):
        scoring = Scoring([metric], setting)
        brighter = images[:count] + 0.1 * torch.arange(count).view(-1, 1, 1, 1)
        scoring.update(brighter, images[:count], model.encode(images[:count]))
        scores.append(scoring.compute())
    fresh = Scoring([METRICS[name]()], setting)
    fresh.update(images[:2] + 0.1 * torch.arange(2).view(-1, 1, 1, 1), images[:2], model.encode(images[:2]))
    assert scores[1] == fresh.compute()
    if name in ("psnr", "ssim", "msssim", "count", "latent_spectrum", "noise_tolerance", "channel_correlation"):
        assert scores[0] != scores[1]


def test_only_named_metrics_are_computed_and_rank_the_report(tiny_model: KLAutoencoder) -> None:
    torch.nn.init.normal_(tiny_model.net.decoder.conv_out.weight, std=0.3)
    result = run(tiny_model, [Blueness(), SSIM()])
    assert list(result.scores) == ["blueness", "ssim", "bicubic_blueness", "bicubic_ssim"]
    assert result.ranking == "blueness"
    values = sorted(row.scores["blueness"] for row in result.images)
    assert [picture.row.scores["blueness"] for picture in result.best] == values[:2]  # lower is better
    assert [picture.row.scores["blueness"] for picture in result.worst] == values[::-1][:2]
    text = Page(write_report_text(result)).text
    assert "The worst, by blueness" in text
    assert "blueness of each image" in text
    assert "PSNR" not in text


def write_report_text(result: Evaluation) -> str:
    from ldm_ae.evaluation.report.write import render

    return render(result)


def test_report_without_image_scores_has_no_ranking(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    result = run(tiny_model, [Rate()])
    assert list(result.scores) == ["kl_bits_per_pixel"]
    assert result.ranking is None
    assert (result.best, result.worst, len(result.first)) == ([], [], 2)
    text = Page(write_report(result, tmp_path).read_text(encoding="utf-8")).text
    assert "KL rate, bits per pixel" in text
    assert "The worst" not in text
    assert any(line.startswith("kl_bits_per_pixel ") for line in summary_lines(result))


def test_metric_without_a_value_for_the_model_is_skipped_by_name(tiny_model: KLAutoencoder) -> None:
    result = run(tiny_model, [PSNR(), Codebook()])
    assert result.skipped == {"codebook": "Codebook has no value for this model"}
    assert result.protocol["skipped"] == result.skipped
    default = evaluate(
        tiny_model, loader(), source="", transform_description={}, model_name="", device="cpu", pictures=0
    )
    assert default.skipped == {}


@pytest.mark.parametrize("side", [8, 32])
def test_images_too_small_for_a_metric_skip_only_it(side: int) -> None:
    result = run(IdentityAutoencoder(), [PSNR(), SSIM(), MSSSIM()], loader(2, size=side))
    reasons = {
        "ssim": f"SSIM needs images of at least 11x11 pixels, got {side}x{side}",
        "msssim": f"MS-SSIM needs images of at least 176x176 pixels, got {side}x{side}",
    }
    expected = reasons if side < 11 else {"msssim": reasons["msssim"]}
    assert result.skipped == expected
    assert {"psnr", "ssim", "msssim"} - result.scores.keys() == expected.keys()


def test_metric_that_fails_after_some_images_has_no_values() -> None:
    class Tired(ImageMetric):
        name = "tired"
        direction = "higher"
        seen = 0

        def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
            self.seen += len(pixel_values)
            if self.seen > 4:
                raise CannotScoreError("tired after 4 images")
            return pixel_values.mean(dim=(1, 2, 3))

    result = run(IdentityAutoencoder(), [Tired(), PSNR()], loader(6, 2))
    assert result.skipped == {"tired": "tired after 4 images"}
    assert set(result.scores) == {"psnr", "bicubic_psnr"}
    assert all(set(row.scores) == {"psnr", "bicubic_psnr"} for row in result.images)
    assert result.ranking == "psnr"


def test_metric_requirements_are_checked() -> None:
    class Large(Blueness):
        needs = Needs(side=33)

    result = run(IdentityAutoencoder(), [Large()], loader(2))
    assert result.skipped == {"blueness": "blueness needs images of at least 33x33 pixels, got 32x32"}


def test_protocol_lists_the_networks_of_all_frechet_distances(tiny_model: KLAutoencoder) -> None:
    class Others(PixelFeatures):
        name = "other"

    result = run(tiny_model, [Frechet(PixelFeatures()), Frechet(Others())])
    assert result.protocol["frechet_features"]["network"] == "colour"  # type: ignore[index]
    assert result.protocol["frechet_features_frechet_other"]["network"] == "other"  # type: ignore[index]
    assert result.scores["frechet_colour"] == result.scores["frechet_other"]
    assert result.scores["bicubic_frechet_colour"] == result.scores["bicubic_frechet_other"]


def test_metric_may_return_several_numbers(tiny_model: KLAutoencoder) -> None:
    class Extremes(Metric):
        name = "extremes"
        label = "Extremes"
        unit = "levels"
        direction = "higher"

        def reset(self) -> None:
            self.low, self.high = 255.0, 0.0

        def update(self, reconstructions, pixel_values, posterior=None):
            self.low = min(self.low, float(reconstructions.min()))
            self.high = max(self.high, float(reconstructions.max()))
            return {}

        def compute(self) -> dict[str, float]:
            return {"lowest": self.low, "highest": self.high}

    result = run(tiny_model, [Extremes()])
    assert list(result.scores) == ["lowest", "highest", "bicubic_lowest", "bicubic_highest"]
    assert "Extremes: lowest, levels ↑" in Page(write_report_text(result)).text


def test_frechet_distance_needs_no_thumbnails() -> None:
    scoring = Scoring([Frechet(PixelFeatures())], Setting(model=None, device=torch.device("cpu")))
    images = pictures(4)
    scoring.update(images * 0.5, images)
    assert scoring.skipped == {}
    assert list(scoring.compute()) == ["frechet_colour"]


def test_metrics_are_selected_by_name() -> None:
    names = [metric.name for metric in named_metrics(["default"], perceptual="none", features="none")]
    default = ["psnr", "ssim", "rate", "active_latent_channels", "codebook", "latents", "count"]
    assert names == default
    names = [metric.name for metric in named_metrics(["default", "msssim", "psnr"], perceptual="none", features="none")]
    assert names == [*default, "msssim"]
    names = [metric.name for metric in named_metrics(["compare"], perceptual="none", features="none")]
    assert names == [*default, *(metric.name for metric in COMPARED)]
    names = [metric.name for metric in named_metrics(["compare"], perceptual="stlpips_alex", features="none")]
    assert names[2] == "stlpips_alex"
    assert names[-1] == COMPARED[-1].name  # no interpolation without a network of features
    frechet, interpolation = named_metrics(["frechet", "interpolation"], features="efficientnet_lite0")
    assert isinstance(interpolation, Interpolation)
    assert interpolation.originals_of is frechet
    assert interpolation.name == "interpolation_frechet_efficientnet_lite0"
    assert [metric.name for metric in named_metrics(["ssim", "psnr"])] == ["ssim", "psnr"]
    assert [metric.name for metric in named_metrics(["perceptual"], perceptual="stlpips_alex")] == ["stlpips_alex"]
    assert [metric.name for metric in named_metrics(["stlpips_alex"])] == ["stlpips_alex"]
    with pytest.raises(UserError, match=r"no metric is named 'msssm'; did you mean msssim\? There are .*psnr, rate"):
        named_metrics(["msssm"])
    with pytest.raises(UserError, match="--perceptual lpips_vgg has no effect with --metrics psnr; remove it, or add"):
        named_metrics(["psnr"], perceptual="lpips_vgg")


def test_summary_is_ascii_on_an_ascii_terminal(tiny_model: KLAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tiny_model, [PSNR(), Frechet(PixelFeatures())])
    assert any(line.startswith("psnr ↑ ") and line.endswith("PSNR, dB") for line in summary_lines(result))

    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    lines = summary_lines(result)
    assert any(line.startswith("psnr ^ ") for line in lines)
    assert any(line.startswith("frechet_colour v ") and "Fr?chet distance, colour" in line for line in lines)


@pytest.mark.slow
def test_plugin_metric_is_computed_and_explained(tiny_model_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path / "site", "worst", PLUGIN)
    words = [
        "evaluate", str(tiny_model_folder), str(image_folder), "--size", "32", "--device", "cpu", "--workers", "0",
        "--limit", "3", "--out", str(tmp_path / "scores"), "--metrics", "psnr", "worst_pixel",
    ]  # fmt: skip
    log = tmp_path / "log"
    assert run_script(CLI, words, log, packages=tmp_path / "site") == 0, log.read_text(encoding="utf-8")
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["scores"]) == ["psnr", "worst_pixel", "bicubic_psnr", "bicubic_worst_pixel"]
    values = [row["worst_pixel"] for row in metrics["images"]]
    assert all(0 < value <= 255 and value == pytest.approx(round(value), abs=1e-3) for value in values)  # of 8 bits
    assert metrics["scores"]["worst_pixel"] == pytest.approx(sum(values) / 3)
    page = Page((tmp_path / "scores" / "report.html").read_text(encoding="utf-8"))
    assert "Worst <pixel>, levels ↓Lower is better. The largest error of any colour of any pixel." in page.text
    assert f"Worst <pixel> {values[0]:.1f} levels" in page.text
    (line,) = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("worst_pixel")]
    assert line.startswith("worst_pixel ↓ ")
    assert line.endswith("Worst <pixel>, levels")
