"""Scores of images that are not RGB, with values that can be worked out or that other libraries give."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import Evaluation, evaluate, validate
from ldm_ae.evaluation.baselines import score_quality
from ldm_ae.evaluation.codecs import cannot_code, code_images
from ldm_ae.evaluation.metrics import METRICS
from ldm_ae.evaluation.metrics.frechet import FeatureStatistics, Frechet, frechet_distance
from ldm_ae.evaluation.metrics.interface import Metric, Setting
from ldm_ae.evaluation.metrics.interpolation import Interpolation
from ldm_ae.evaluation.metrics.msssim import MSSSIM, msssim
from ldm_ae.evaluation.metrics.perceptual import Perceptual
from ldm_ae.evaluation.metrics.psnr import PSNR, PSNR_CEILING, psnr
from ldm_ae.evaluation.metrics.ssim import SSIM, ssim
from ldm_ae.evaluation.report.write import render
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.evaluation.thumbnail import bicubic_thumbnail
from ldm_ae.images.missing import MISSING, known
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.images.stored import as_stored, stored_pair
from ldm_ae.images.views import Bands, Composite, Triples, View, opaque
from ldm_ae.losses import SSIMDistance
from tests.channels import FIVE, GAPS, PLAIN_FIVE, SPECS, PatchModel, images
from tests.evaluation.stubs import Batch, Loader, MeanDistance, PixelFeatures

CPU = torch.device("cpu")
every_spec = pytest.mark.parametrize("pixels", SPECS.values(), ids=SPECS)


def scoring(metrics: list[Metric], pixels: PixelSpec, view: View | None = None) -> Scoring:
    return Scoring(metrics, Setting(model=PatchModel(pixels), device=CPU, view=view))


def scores(
    metric: Metric, pixels: PixelSpec, pair: tuple[Tensor, Tensor], view: View | None = None
) -> dict[str, float]:
    found = scoring([metric], pixels, view)
    found.update(*pair)
    assert not found.skipped
    return found.compute()


def decibels(error: Tensor, peak: float = 2.0) -> float:
    return 10 * math.log10(peak**2 / float(error.double().square().mean()))


@every_spec
def test_pixel_metrics_score_every_kind_of_images(pixels: PixelSpec) -> None:
    pair = images(pixels, size=176)
    found = scoring([PSNR(), SSIM(), MSSSIM()], pixels)
    values, computed = found.update(*pair, thumbnails=pair[0]), found.compute()
    for name, function in (("psnr", psnr), ("ssim", ssim), ("msssim", msssim)):
        stored = stored_pair(*pair, pixels)
        assert values[name] == pytest.approx(function(*stored, pixels).tolist(), rel=1e-6)
        assert computed[name] == pytest.approx(sum(values[name]) / 2)
        assert computed[f"bicubic_{name}"] == computed[name]
    assert found.infos["psnr"].label == "PSNR"


def test_psnr_of_other_bits_has_the_range_of_the_specification_as_its_peak() -> None:
    reconstructions, pixel_values = images(FIVE)
    found = scores(PSNR(), FIVE, (reconstructions, pixel_values))["psnr"]
    errors = [decibels(one.clamp(-1, 1) - other) for one, other in zip(reconstructions, pixel_values, strict=True)]
    assert found == pytest.approx(sum(errors) / 2, abs=1e-3)  # 16 bits round by 1.5e-5
    scaled = replace(FIVE, low=(100.0,) * 5, high=(1100.0,) * 5)
    stored = [100 + (values.clamp(-1, 1) + 1) * 500 for values in (reconstructions, pixel_values)]
    errors = [decibels(a.round() - b.round(), peak=1000.0) for a, b in zip(*stored, strict=True)]
    assert scores(PSNR(), scaled, (reconstructions, pixel_values))["psnr"] == pytest.approx(sum(errors) / 2, rel=1e-6)


def test_eight_bit_grey_has_the_scores_of_the_repeated_image() -> None:
    pair = images(GREY, size=176)
    repeated = (pair[0].repeat(1, 3, 1, 1), pair[1].repeat(1, 3, 1, 1))
    for metric in (PSNR, SSIM, MSSSIM):
        of_grey, of_rgb = scores(metric(), GREY, pair), scores(metric(), RGB, repeated)
        assert of_grey == pytest.approx(of_rgb, rel=1e-6)
    with_view = scores(Perceptual(MeanDistance()), GREY, pair)
    assert with_view == pytest.approx(scores(Perceptual(MeanDistance()), RGB, repeated))


def test_scores_of_each_channel_equal_a_direct_computation() -> None:
    pair = stored_pair(*images(FIVE), FIVE)
    found = scoring([PSNR(), SSIM()], FIVE)
    found.update(*(each[:1] for each in pair))
    found.update(*(each[1:] for each in pair))
    found.compute()
    of_channels: Any = found.details["psnr"]["channels"]
    assert list(of_channels) == list(FIVE.names)
    for number, name in enumerate(FIVE.names):
        differences = (pair[0] - pair[1])[:, number]
        assert of_channels[name] == pytest.approx(sum(decibels(each) for each in differences) / 2, abs=1e-5)
    of_channels = found.details["ssim"]["channels"]
    for number, name in enumerate(FIVE.names):
        one = [each[:, number : number + 1] for each in pair]
        assert of_channels[name] == pytest.approx(float(ssim(*one, replace(GREY, bits=16)).mean()), abs=1e-5)


@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_colours_have_no_scores_of_channels(pixels: PixelSpec) -> None:
    found = scoring([PSNR(), SSIM()], pixels)
    found.update(*images(pixels))
    assert set(found.compute()) == {"psnr", "ssim"}
    assert found.details == {}


def test_ssim_of_channels_equals_torchmetrics_over_whole_windows() -> None:
    reference = pytest.importorskip("torchmetrics.functional.image")
    pair = stored_pair(*images(FIVE, size=48), FIVE)
    doubles = [(each.double() + 1) / 2 for each in pair]
    _, maps = reference.structural_similarity_index_measure(
        *doubles, data_range=1.0, sigma=1.5, reduction="none", return_full_image=True
    )
    inside = maps[..., 5:-5, 5:-5]  # its own mean includes windows over reflected borders
    assert ssim(*pair, FIVE).tolist() == pytest.approx(inside.mean(dim=(1, 2, 3)).tolist(), abs=1e-6)
    found = scoring([SSIM()], FIVE)
    found.update(*pair)
    found.compute()
    of_channels: Any = found.details["ssim"]["channels"]
    assert [*of_channels.values()] == pytest.approx(inside.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)


def test_ms_ssim_of_channels_is_the_mean_over_them() -> None:
    pair = stored_pair(*images(FIVE, size=176), PLAIN_FIVE)
    each = [
        msssim(*(one[:, number].unsqueeze(1).repeat(1, 3, 1, 1) for one in pair)) for number in range(FIVE.channels)
    ]
    assert msssim(*pair, PLAIN_FIVE).tolist() == pytest.approx(torch.stack(each).mean(dim=0).tolist(), abs=1e-6)


def test_alpha_is_scored_over_three_backgrounds_and_by_itself() -> None:
    reconstructions, pixel_values = stored_pair(*images(RGBA), RGBA)
    found = scores(PSNR(), RGBA, (reconstructions, pixel_values))
    assert set(found) == {"psnr", "psnr_min", "psnr_black", "psnr_white", "psnr_checker", "psnr_alpha"}
    each = {}
    for name in ("black", "white", "checker"):
        each[name] = psnr(opaque(reconstructions, name), opaque(pixel_values, name))  # type: ignore[arg-type]
        assert found[f"psnr_{name}"] == pytest.approx(float(each[name].mean()), abs=1e-4)
    stacked = torch.stack([*each.values()])
    assert found["psnr"] == pytest.approx(float(stacked.mean()), abs=1e-4)
    assert found["psnr_min"] == pytest.approx(float(stacked.amin(dim=0).mean()), abs=1e-4)
    assert found["psnr_alpha"] == pytest.approx(float(psnr(reconstructions[:, 3:], pixel_values[:, 3:], GREY).mean()))
    assert PSNR().info("psnr_min").label == "PSNR, worst background"
    assert PSNR().info("psnr_white").direction == "higher"


def test_hidden_colour_does_not_change_scores() -> None:
    reconstructions, pixel_values = images(RGBA)
    pixel_values[:, 3, :, :16] = reconstructions[:, 3, :, :16] = -1.0
    changed = reconstructions.clone()
    changed[:, :3, :, :16] = torch.rand(2, 3, 32, 16)
    for metric in (PSNR, SSIM, lambda: Perceptual(MeanDistance()), lambda: Perceptual(SSIMDistance())):
        first, second = (scores(metric(), RGBA, (each, pixel_values)) for each in (reconstructions, changed))
        assert first == second


def test_missing_data_does_not_change_scores() -> None:
    reconstructions, pixel_values = images(GAPS)
    changed = torch.where(known(pixel_values), reconstructions, 0.9)
    for metric in (PSNR, SSIM):
        first, second = (scores(metric(), GAPS, (each, pixel_values)) for each in (reconstructions, changed))
        assert first == second
    found = scores(PSNR(), GAPS, (reconstructions, pixel_values))["psnr"]
    # Of each image the lower three quarters are known, in both channels.
    parts = zip(reconstructions[..., 8:, :].clamp(-1, 1), pixel_values[..., 8:, :], strict=True)
    assert found == pytest.approx(sum(decibels(a - b) for a, b in parts) / 2, abs=1e-4)
    windows = scores(SSIM(), GAPS, (reconstructions, pixel_values))["ssim"]
    below = replace(GAPS, missing=None)
    assert windows == pytest.approx(
        scores(SSIM(), below, (reconstructions[..., 8:, :], pixel_values[..., 8:, :]))["ssim"]
    )


def test_image_without_data_has_no_error() -> None:
    nothing = torch.full((1, 2, 32, 32), MISSING)
    assert scores(PSNR(), GAPS, (torch.zeros(1, 2, 32, 32), nothing))["psnr"] == PSNR_CEILING
    assert scores(SSIM(), GAPS, (torch.zeros(1, 2, 32, 32), nothing))["ssim"] == 1.0


@pytest.mark.parametrize(("pixels", "view"), [(GREY, None), (RGBA, None), (FIVE, None), (PLAIN_FIVE, Triples())])
def test_frechet_distance_is_that_of_the_views(pixels: PixelSpec, view: View | None) -> None:
    pair = stored_pair(*images(pixels, count=6), pixels)
    found = scores(Frechet(PixelFeatures()), pixels, pair, view)["frechet_colour"]
    features = PixelFeatures()
    seen = scoring([Frechet(features)], pixels, view).view
    assert seen is not None
    of_views = [FeatureStatistics(features.dim), FeatureStatistics(features.dim)]
    for statistics, each in zip(of_views, pair, strict=True):
        statistics.update(features(seen(each)[0]))
    assert of_views[0].count == 6 * seen.count
    assert found == pytest.approx(frechet_distance(*of_views), rel=1e-6)


def test_perceptual_score_of_an_image_is_the_mean_over_its_views() -> None:
    pair = stored_pair(*images(RGBA), RGBA)
    found = scoring([Perceptual(MeanDistance())], RGBA, Composite(backgrounds=["black", "white"]))
    (values,) = found.update(*pair).values()
    each = [MeanDistance()(*(opaque(one, name) for one in pair)) for name in ("black", "white")]  # type: ignore[arg-type]
    assert values == pytest.approx(torch.stack(each).mean(dim=0).tolist())


def test_network_without_a_view_is_skipped_and_names_the_option() -> None:
    found = scoring([PSNR(), Perceptual(MeanDistance()), Frechet(PixelFeatures())], PLAIN_FIVE)
    assert [*found.skipped] == ["mean_distance", "frechet_colour"]
    for reason in found.skipped.values():
        assert "requires images that are rgb" in reason
        assert "Set --view to bands or triples" in reason
        assert len(reason.splitlines()) == 1
    assert found.view is None


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_without_weights_scores_or_skips_five_channels(name: str) -> None:
    needs_weights = ("lpips", "stlpips", "rfid", "rfdd", "frechet", "perceptual", "interpolation", "ifid")
    if name.startswith(needs_weights):
        pytest.skip("it needs a network's weights; stand-ins score such metrics above")
    model = PatchModel(FIVE)
    found = Scoring([METRICS[name]()], Setting(model=model, device=CPU))
    pixel_values = images(FIVE, count=4, size=176)[1]
    with torch.no_grad():
        posterior = model.encode(pixel_values)
        found.update(model.decode(posterior.mode()), pixel_values, posterior, labels=torch.tensor([0, 0, 1, 1]))
        computed = found.compute()
    assert bool(computed) != bool(found.skipped)
    assert all(math.isfinite(value) for value in computed.values())
    assert all(len(reason.splitlines()) == 1 for reason in found.skipped.values())


def test_interpolation_sees_the_view() -> None:
    model, pixel_values = PatchModel(FIVE), images(FIVE, count=4)[1]
    found = Scoring([Interpolation(PixelFeatures())], Setting(model=model, device=CPU, view=Bands()))
    with torch.no_grad():
        posterior = model.encode(pixel_values)
        found.update(model.decode(posterior.mode()), pixel_values, posterior)
        assert math.isfinite(found.compute()["interpolation_frechet_colour"])
    assert Scoring([Interpolation(PixelFeatures())], Setting(model=PatchModel(PLAIN_FIVE), device=CPU)).skipped


def loader(pixels: PixelSpec, count: int = 4) -> Loader:
    values = images(pixels, count=count, size=32)[1]
    return Loader([Batch(values[i : i + 2], [f"{i}", f"{i + 1}"]) for i in range(0, count, 2)])


def run(pixels: PixelSpec, **options: Any) -> Evaluation:
    return evaluate(
        PatchModel(pixels), loader(pixels), source="made", transform_description={}, model_name="patches", device=CPU,
        perceptual=MeanDistance(), features=PixelFeatures(), pictures=1, **options,
    )  # fmt: skip


@every_spec
def test_evaluation_shows_and_scores_every_kind_of_images(pixels: PixelSpec) -> None:
    found = run(pixels)
    assert {"psnr", "ssim", "mean_distance", "frechet_colour", "bicubic_psnr"} <= found.scores.keys()
    (picture,) = found.first
    assert picture.original.shape == picture.reconstruction.shape == picture.thumbnail.shape == (3, 32, 32)
    assert "patches" in render(found)
    if pixels == RGB:
        assert "view" not in found.protocol
    else:
        assert found.protocol["pixels"] == pixels.words
        words: Any = found.protocol["view"]
        assert set(words) == {"networks", "pictures"}
    assert ("rounded to the stored values of 16 bits" in str(found.protocol["reconstruction"])) == (pixels == FIVE)


def test_pictures_show_grey_as_grey_alpha_over_a_checker_and_chosen_bands() -> None:
    grey = run(GREY).first[0].original
    assert torch.equal(grey[0], grey[1])
    originals = images(RGBA, count=4, size=32)[1]
    expected = ((opaque(originals[:1], "checker")[0] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(run(RGBA).first[0].original, expected)
    chosen = run(FIVE, view=Bands(bands=["nir", "red", "green"]))
    expected = ((images(FIVE, count=4, size=32)[1][0, [3, 2, 1]] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(chosen.first[0].original, expected)
    words: Any = chosen.protocol["view"]
    assert words == {"networks": words["pictures"], "pictures": "channels nir, red, green as red, green, blue"}


def test_validation_takes_the_view() -> None:
    batches = loader(PLAIN_FIVE)
    assert "mean_distance" in validate(PatchModel(PLAIN_FIVE), batches, MeanDistance(), view=Triples())
    with pytest.raises(UserError, match="requires images that are rgb"):
        validate(PatchModel(PLAIN_FIVE), batches, MeanDistance())


def test_missing_data_is_black_in_pictures_and_absent_from_scores() -> None:
    found = evaluate(
        PatchModel(GAPS), loader(GAPS), source="made", transform_description={}, model_name="patches", device=CPU,
        metrics=[PSNR(), SSIM()], pictures=1,
    )  # fmt: skip
    picture = found.first[0]
    for shown in (picture.original, picture.reconstruction, picture.thumbnail):
        assert not shown[:, :8].any()
        assert shown[:, 8:].any()


def test_thumbnail_counts_the_channels() -> None:
    pixel_values = images(FIVE, size=64)[1]
    thumbnail, size = bicubic_thumbnail(pixel_values, 5 * 16 * 16)
    assert size == (16, 16)
    assert thumbnail.shape == pixel_values.shape


@pytest.mark.parametrize("pixels", [RGB, GREY, FIVE, GAPS], ids=["rgb", "grey", "five", "gaps"])
def test_rounding_keeps_stored_values(pixels: PixelSpec) -> None:
    values = as_stored(images(pixels)[0], pixels)
    assert values.min() >= -1
    assert values.max() <= 1
    assert torch.equal(as_stored(values, pixels), values)
    if pixels.bits:
        levels = (values.double() + 1) * (2**pixels.bits - 1) / 2
        assert float((levels - levels.round()).abs().max()) < 0.01


def test_codecs_code_grey_and_refuse_other_images_in_one_line() -> None:
    pixel_values = images(GREY, size=32)[1]
    coded = code_images(pixel_values, "jpeg", 90)
    assert coded.reconstructions.shape == (2, 3, 32, 32)
    batches = Loader([Batch(pixel_values, ["a", "b"])])
    found = score_quality("jpeg", batches, 90, [PSNR()], device=CPU).scores["psnr"]
    assert found == pytest.approx(float(psnr(coded.reconstructions, pixel_values.repeat(1, 3, 1, 1)).mean()))
    assert cannot_code("jpeg", RGB) is None
    assert cannot_code("jpeg", GREY) is None
    for pixels in (RGBA, FIVE, replace(GREY, bits=16, high=(65535.0,))):
        reason = cannot_code("webp", pixels)
        assert reason is not None
        assert reason.startswith("webp is skipped: it codes RGB and grey images of 8 bits, but the images are")
    with pytest.raises(UserError, match="got images of 5 channels"):
        code_images(images(FIVE)[1], "jpeg", 90)


def test_rounded_images_are_numpy_levels() -> None:
    levels = np.arange(0, 65536, 257, dtype=np.uint16)
    pixels = PixelSpec(channels=1, meaning="grey", bits=16)
    values = torch.from_numpy(levels.astype(np.float32)).view(1, 1, 16, 16) / 32767.5 - 1
    torch.testing.assert_close(as_stored(values, pixels), values, rtol=0, atol=1e-7)
