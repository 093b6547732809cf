from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import torch

import ldm_ae
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import FeatureStatistics, evaluate, frechet_distance, psnr, ssim, validate
from ldm_ae.evaluation.latent_summary import ACTIVE_NATS, LatentSummary
from ldm_ae.evaluation.metric_sets import named_metrics
from ldm_ae.evaluation.metrics.psnr import PSNR_CEILING
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.images.uint8 import from_levels, rounded
from ldm_ae.losses import LPIPS
from ldm_ae.models import ChannelStatistics, GaussianPosterior, KLAutoencoder, weights_sha256
from tests.evaluation.stubs import IdentityAutoencoder, Loader, MeanDistance, PixelFeatures, loader, pictures


def run(model, images: Loader | None = None, **options) -> Evaluation:
    return evaluate(
        model,
        images if images is not None else loader(),
        source="six pictures",
        transform_description={"size": [32, 32], "crop": "center"},
        model_name="tiny",
        device="cpu",
        **options,
    )


@pytest.fixture
def blurred_model(tiny_model: KLAutoencoder) -> KLAutoencoder:
    """The tiny model with an output that differs between images."""
    torch.nn.init.normal_(tiny_model.net.decoder.conv_out.weight, std=0.3)
    return tiny_model


def test_scores_are_means_of_the_values_of_images(blurred_model: KLAutoencoder) -> None:
    result = run(blurred_model, perceptual=MeanDistance(), features=PixelFeatures())
    originals = pictures(6)
    with torch.no_grad():
        posterior = blurred_model.encode(originals)
        reconstructions = blurred_model.decode(posterior.mode())
    # Batches of 4 and 2 against one of 6: float32 convolutions in another order move a value across the border
    # between two levels here and there, 1 of 255 in 1 of 1,000 values or so.
    assert result.scores["psnr"] == pytest.approx(float(psnr(reconstructions, originals).mean()), abs=1e-3)
    assert result.scores["ssim"] == pytest.approx(float(ssim(reconstructions, originals).mean()), abs=1e-4)
    assert result.scores["kl_bits_per_pixel"] == pytest.approx(float(posterior.rate().mean()) / 32**2, rel=1e-5)
    assert [row.key for row in result.images] == [f"{i:03d}.png" for i in range(6)]
    for name in ("psnr", "ssim", "mean_distance", "kl_bits_per_pixel", "bicubic_psnr", "bicubic_mean_distance"):
        values = [row.scores[name] for row in result.images]
        assert result.scores[name] == pytest.approx(sum(values) / 6, rel=1e-12), name
        assert len(set(values)) > 1, name
    assert result.scores["count"] == 6
    originals_statistics, reconstructions_statistics = FeatureStatistics(6), FeatureStatistics(6)
    originals_statistics.update(PixelFeatures()(originals))
    reconstructions_statistics.update(PixelFeatures()(rounded(reconstructions)))
    expected = frechet_distance(originals_statistics, reconstructions_statistics)
    assert result.scores["frechet_colour"] == pytest.approx(expected, rel=1e-3)  # rounding of the pixels, as above
    assert (
        result.scores["bicubic_frechet_colour"] < expected / 10
    )  # shrinking hardly changes the mean and standard deviation
    assert "rfid" not in result.scores


def test_evaluation_is_repeatable(blurred_model: KLAutoencoder) -> None:
    options = {"perceptual": MeanDistance(), "features": PixelFeatures()}
    first = run(blurred_model, **options)
    torch.manual_seed(99)  # the global generator must not matter
    second = run(blurred_model, **options)
    assert first.scores == second.scores
    assert first.images == second.images
    assert first.channels == second.channels
    assert first.protocol == second.protocol


def test_scores_do_not_depend_on_the_batch_size(blurred_model: KLAutoencoder) -> None:
    one, six = (run(blurred_model, loader(6, size), features=PixelFeatures()).scores for size in (1, 6))
    # Convolutions over another batch size sum in another order: 1e-6 in the latents, a level here and there.
    assert one == pytest.approx(six, rel=1e-3)
    assert one["latent_std"] == pytest.approx(six["latent_std"], rel=1e-6)  # the noise is each image's own


def test_perfect_model_reaches_the_best_scores() -> None:
    result = run(IdentityAutoencoder(), perceptual=MeanDistance(), features=PixelFeatures())
    assert result.scores["psnr"] == PSNR_CEILING
    assert result.scores["ssim"] == pytest.approx(1.0, abs=1e-5)  # float32 sums over a window of 121 pixels
    assert result.scores["mean_distance"] == 0.0
    assert result.scores["frechet_colour"] == pytest.approx(0.0, abs=1e-12)  # float64 rounding
    assert "kl_bits_per_pixel" not in result.scores
    assert "active_latent_channels" not in result.scores
    # As many numbers as pixels: the thumbnail is the image.
    assert result.scores["bicubic_psnr"] == PSNR_CEILING
    json.dumps(result.scores, allow_nan=False)


def test_baseline_is_a_thumbnail_with_as_many_numbers_as_the_latents(tiny_model: KLAutoencoder) -> None:
    result = run(tiny_model)
    # 4 x 8 x 8 numbers are 9 x 9 colour pixels, rounded
    assert result.protocol["baseline"]["thumbnail_size"] == "9x9"
    originals = pictures(6)
    small = torch.nn.functional.interpolate(originals, size=(9, 9), mode="bicubic", antialias=True)
    expected = psnr(torch.nn.functional.interpolate(small, size=(32, 32), mode="bicubic"), originals)
    # A value may round to the level next to it: see above.
    assert [row.scores["bicubic_psnr"] for row in result.images] == pytest.approx(expected.tolist(), abs=1e-3)


def test_ranking_lists_worst_best_and_first_images() -> None:
    images = loader(9, 2)
    originals = pictures(9)
    order = [3, 7, 0, 8, 1, 5, 2, 6, 4]  # of falling error

    class Uneven(IdentityAutoencoder):
        def decode(self, latents):
            which = [int((originals - z).abs().amax(dim=(1, 2, 3)).argmin()) for z in latents]
            errors = torch.tensor([float(9 - order.index(i)) for i in which]).view(-1, 1, 1, 1)
            return latents * (1 - errors / 20)

    result = run(Uneven(), images, pictures=3)
    ranked = sorted(result.images, key=lambda row: row.scores["psnr"])
    assert len({row.scores["psnr"] for row in ranked}) == 9
    assert [p.row for p in result.worst] == ranked[:3]
    assert [p.row for p in result.best] == ranked[:-4:-1]
    assert [p.row.key for p in result.first] == ["000.png", "001.png", "002.png"]
    for picture in [*result.first, *result.worst, *result.best]:
        assert torch.equal(from_levels(picture.original), originals[int(picture.row.key[:3])])
        again = psnr(from_levels(picture.reconstruction)[None], from_levels(picture.original)[None])
        assert float(again) == picture.row.scores["psnr"]
    none = run(Uneven(), images, pictures=0)
    assert (none.first, none.worst, none.best) == ([], [], [])


def test_ranking_ties_keep_the_earlier_image() -> None:
    result = run(IdentityAutoencoder(), pictures=2)
    assert [p.row.key for p in result.worst] == ["000.png", "001.png"]
    assert [p.row.key for p in result.best] == ["000.png", "001.png"]


def test_latent_statistics_equal_a_direct_computation(tiny_model: KLAutoencoder) -> None:
    result = run(tiny_model, seed=5)
    noise = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5 + i)) for i in range(6)]
    expected = ChannelStatistics(4)
    with torch.no_grad():
        posterior = tiny_model.encode(pictures(6))
        expected.update(posterior.sample(noise=torch.stack(noise)))
    # float32 encoder outputs of another batch size
    assert [c.mean for c in result.channels] == pytest.approx(expected.channel_mean.tolist(), abs=1e-5)
    assert [c.std for c in result.channels] == pytest.approx(expected.channel_std.tolist(), rel=1e-5)
    assert result.scores["latent_std"] == pytest.approx(expected.pooled_std, rel=1e-5)
    assert result.scores["scaling_factor"] == 1.0 / result.scores["latent_std"]
    kl = posterior.kl_map().mean(dim=(0, 2, 3)).tolist()
    assert [c.kl_nats for c in result.channels] == pytest.approx(kl, rel=1e-5)
    assert all(sum(c.histogram) == 6 * 8 * 8 for c in result.channels)


def test_active_channels_have_a_kl_above_the_threshold() -> None:
    # KL of N(m, 1) to N(0, 1) is m² / 2
    means = torch.tensor([0.0, (2 * ACTIVE_NATS * 0.98) ** 0.5, (2 * ACTIVE_NATS * 1.02) ** 0.5, 1.0])
    moments = torch.cat([means, torch.zeros(4)]).view(1, 8, 1, 1).expand(2, 8, 16, 16)
    summary = LatentSummary(4, seed=0)
    summary.update(GaussianPosterior(moments), torch.Size([2, 4, 16, 16]))
    assert [c.active for c in summary.channels()] == [False, False, True, True]


def test_histogram_covers_four_standard_deviations_and_clamps_outliers() -> None:
    summary = LatentSummary(1, seed=0)
    moments = torch.zeros(1, 2, 64, 64)
    summary.update(GaussianPosterior(moments), torch.Size([1, 1, 64, 64]))
    moments[:, 0] = 100.0
    summary.update(GaussianPosterior(moments), torch.Size([1, 1, 64, 64]))
    (channel,) = summary.channels()
    low, high = channel.histogram_range
    assert (low, high) == pytest.approx((-4.0, 4.0), abs=0.2)  # of 4,096 draws
    assert channel.histogram[-1] >= 64 * 64
    assert sum(channel.histogram) == 2 * 64 * 64


def test_protocol_records_what_the_scores_depend_on(tiny_model: KLAutoencoder) -> None:
    sha256 = weights_sha256(tiny_model)
    result = run(tiny_model, precision="bf16", features=PixelFeatures())
    protocol = result.protocol
    assert protocol["images"] | {"keys_sha256": ""} == {
        "source": "six pictures",
        "count": 6,
        "keys_sha256": "",
        "size": "32x32",
        "transform": {"size": [32, 32], "crop": "center"},
        "rejected": {"broken.jpg": "truncated"},
    }
    assert protocol["model"]["sha256"] == sha256  # of the weights as they came, not as cast
    assert protocol["model"]["downsample_factor"] == 4
    assert protocol["precision"] == "bf16"
    assert protocol["device"].startswith("cpu")
    assert protocol["frechet_features"] == {"network": "colour", "dim": 6, "preprocessing": "none"}
    assert "8 bits" in protocol["reconstruction"]
    assert protocol["versions"]["torch"] == torch.__version__.split("+")[0]
    json.dumps(protocol, allow_nan=False)


def test_image_digest_differs_between_image_sets(tiny_model: KLAutoencoder) -> None:
    digests = [
        run(tiny_model, loader(keys=keys)).protocol["images"]["keys_sha256"]
        for keys in (list("abcdef"), list("abcdeg"), list("abcdef"))
    ]
    assert digests[0] == digests[2] != digests[1]


def test_evaluation_without_images_is_refused(tiny_model: KLAutoencoder) -> None:
    with pytest.raises(UserError, match="no images to evaluate in six pictures"):
        run(tiny_model, Loader([]))
    with pytest.raises(UserError, match="no held-out images"):
        validate(tiny_model, Loader([]))


def test_non_finite_reconstruction_is_refused_by_name() -> None:
    class Overflow(IdentityAutoencoder):
        def decode(self, latents):
            out = latents.clone()
            out[1::4, 0, 3, 3] = float("inf")
            return out

    with pytest.raises(UserError, match=r"of 001\.png, 005\.png is not finite in fp16 and in fp32; the weights or"):
        run(Overflow(), loader(6, 6), precision="fp16")
    with pytest.raises(UserError, match=r"of 001\.png, 005\.png is not finite in bf16; try --precision fp32"):
        run(Overflow(), loader(6, 6), precision="bf16")


def test_progress_counts_images(tiny_model: KLAutoencoder) -> None:
    seen: list[int] = []
    run(tiny_model, progress=seen.append)
    assert seen == [4, 6]


def test_progress_then_counts_scores(tiny_model: KLAutoencoder) -> None:
    seen: list[tuple[str, int, int]] = []
    run(
        tiny_model, metrics=named_metrics(["psnr", "ssim"]), progress=lambda done: seen.append(("images", done, 6)),
        score_progress=lambda done, total: seen.append(("scores", done, total)),
    )  # fmt: skip
    assert seen == [("images", 4, 6), ("images", 6, 6), ("scores", 0, 2), ("scores", 1, 2)]


def test_validate_equals_evaluate_and_preserves_module_modes(blurred_model: KLAutoencoder) -> None:
    blurred_model.train()
    blurred_model.net.encoder.eval()
    before = [module.training for module in blurred_model.modules()]
    assert len(set(before)) == 2
    scores = validate(blurred_model, loader(), MeanDistance())
    assert [module.training for module in blurred_model.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in blurred_model.parameters())
    expected = run(blurred_model, perceptual=MeanDistance()).scores
    # The same arithmetic, but evaluate runs channels-last: see the batch size.
    assert scores == pytest.approx({name: expected[name] for name in scores}, rel=1e-3)
    assert list(scores) == ["psnr", "ssim", "mean_distance"]


def test_validate_restores_module_modes_after_an_error(tiny_model: KLAutoencoder) -> None:
    tiny_model.train()
    with pytest.raises(UserError):
        validate(tiny_model, loader(2, size=30))
    assert all(module.training for module in tiny_model.modules())


def test_validate_runs_the_model_in_eval_mode_and_autocast() -> None:
    class Watching(IdentityAutoencoder):
        def decode(self, latents):
            self.seen = self.training, self.net.training, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
            return super().decode(latents)

    model = Watching().train()
    validate(model, loader())
    assert model.seen == (False, False, False, False)
    validate(model, loader(), autocast_dtype=torch.bfloat16)
    assert model.seen == (False, False, True, False)


def test_model_digest_covers_names_shapes_dtypes_and_values(tiny_model: KLAutoencoder) -> None:
    first = weights_sha256(tiny_model)
    assert first == weights_sha256(tiny_model.to(memory_format=torch.channels_last))
    weight = tiny_model.net.decoder.conv_out.weight
    with torch.no_grad():
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(1e9))
    changed = weights_sha256(tiny_model)
    assert changed != first
    assert weights_sha256(tiny_model.bfloat16()) != changed
    scalar = torch.nn.Module()
    scalar.register_buffer("steps", torch.tensor(3))
    other = torch.nn.Module()
    other.register_buffer("steps", torch.tensor([3]))
    assert weights_sha256(scalar) != weights_sha256(other)


def test_git_commit_is_found_and_marks_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag does not stand for the commit")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None


def test_package_versions_are_listed() -> None:
    versions = package_versions()
    assert versions["ldm_ae"] == ldm_ae.__version__
    assert {"torch", "torchvision", "diffusers", "lpips", "python"} <= versions.keys()


def test_evaluation_result_is_immutable(tiny_model: KLAutoencoder) -> None:
    result = run(tiny_model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.scores = {}  # type: ignore[misc]


def test_single_image_skips_only_the_frechet_distance(tiny_model: KLAutoencoder) -> None:
    many = run(tiny_model, loader(6, 1), perceptual=MeanDistance(), features=PixelFeatures())
    result = run(tiny_model, loader(1), perceptual=MeanDistance(), features=PixelFeatures())
    assert many.scores.keys() - result.scores.keys() == {"frechet_colour", "bicubic_frechet_colour"}
    assert result.images[0].scores == pytest.approx(many.images[0].scores, rel=1e-5)
    assert many.skipped == {}
    assert result.skipped == {"frechet_colour": "a Fréchet distance needs at least 2 images, got 1"}
    assert result.protocol["skipped"] == result.skipped
    assert f"frechet_colour is skipped: {result.skipped['frechet_colour']}" in summary_lines(result)


@pytest.mark.slow
def test_images_too_small_for_a_network_skip_only_its_score(tiny_model: KLAutoencoder) -> None:
    small = LPIPS(net="alex", pretrained=False)
    result = run(tiny_model, loader(2, size=16), perceptual=small, features=PixelFeatures())
    assert {"psnr", "ssim", "frechet_colour"} <= result.scores.keys()
    assert not any("lpips" in name for name in result.scores)
    assert result.skipped["lpips_alex"].startswith("the network does not support images of 16x16, height x width: ")
    assert run(tiny_model, loader(2, size=32), perceptual=small).skipped == {}
