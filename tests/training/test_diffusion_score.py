"""The diffusion score: what it computes, that it resumes and is read back, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_ae.core.errors import Stopped, UserError
from ldm_ae.core.seeding import derive_seed, seeded_noise
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from ldm_ae.evaluation.metrics.interface import CannotScoreError
from ldm_ae.images.uint8 import from_levels
from ldm_ae.io.tensor_files import read_tensors
from ldm_ae.latents import LatentDataset
from ldm_ae.models import KLAutoencoder
from ldm_ae.training.diffusion import score as score_module
from ldm_ae.training.diffusion import trainer as loop
from ldm_ae.training.diffusion.networks import flow_losses
from ldm_ae.training.diffusion.score import DiffusionScore, diffusion_score
from ldm_ae.training.diffusion.score_latents import HELD_OUT, TRAIN, ScoreLatents, ScoreTask
from ldm_ae.training.diffusion.score_protocol import DiffusionImages, DiffusionScoreConfig, split_images

BUDGET = DiffusionScoreConfig(steps=4, batch_size=4, width=32, depth=1, samples=5, sampling_steps=2, model_batch_size=2)
CPU = torch.device("cpu")


class Means:
    """The mean of each channel of an image."""

    name, dim, preprocessing = "means", 3, "none"

    def __call__(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.mean(dim=(2, 3))


class Corners:
    """The channels of an image's first pixel."""

    name, dim, preprocessing = "corners", 3, "none"

    def __call__(self, pixel_values: Tensor) -> Tensor:
        return pixel_values[:, :, 0, 0]


class Scene(NamedTuple):
    """Images, a model and its finished score in `folder`."""

    images: DiffusionImages
    model: KLAutoencoder
    folder: Path
    score: DiffusionScore
    latents: Path


def small_model(seed: int = 0, **options: Any) -> KLAutoencoder:
    torch.manual_seed(seed)
    return KLAutoencoder(
        **dict(latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
               mid_block_add_attention=False) | options
    )  # fmt: skip


def compute(scene: Scene, folder: Path | None = None, **changes: Any) -> DiffusionScore:
    options: dict[str, Any] = {"features": [Means()], "model": scene.model, "config": BUDGET} | changes
    return diffusion_score(folder=folder or scene.folder, images=scene.images, device="cpu", **options)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("diffusion-score")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(12):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(folder / "images" / f"{i}.png")
    images = split_images(open_source(folder / "images"), ImageTransform(size=16), name="squares", held_out=4)
    model = small_model()
    score = diffusion_score(model, folder / "scores", images=images, config=BUDGET, features=[Means()], device="cpu")
    [latents] = score.folder.parent.glob("latents-*")
    return Scene(images, model, folder / "scores", score, latents)


@pytest.fixture(scope="module")
def latents(scene: Scene) -> ScoreLatents:
    return ScoreLatents(scene.latents, scene.model.latent_spec, BUDGET)


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file but the log, which has times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "metrics.jsonl"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# ----------------------------------------------------------------------------------------------------------- the scores


@pytest.mark.slow
def test_score_has_its_numbers_explanations_and_samples(scene: Scene) -> None:
    score = scene.score
    levels = {f"flow_loss_{level}": loss for level, loss in score.flow_losses.items()}
    assert list(score.flow_losses) == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert {key: value for key, value in score.scores.items() if key != "sample_frechet_means"} == {
        "flow_loss": fmean(score.flow_losses.values()), **levels,
    }  # fmt: skip
    assert score.infos.keys() == score.scores.keys()
    assert {info.group for info in score.infos.values()} == {"diffusion"}
    assert {info.direction for info in score.infos.values()} == {"lower"}
    assert score.infos["flow_loss_0.3"].label == "Flow loss at noise level 0.3"
    assert score.compared_images == 4
    assert "2,000" in score.infos["sample_frechet_means"].caution(score.compared_images)
    assert (score.samples.shape, score.samples.dtype) == ((5, 3, 16, 16), torch.uint8)
    assert score.protocol["images"]["train"]["images"] == 8
    assert score.protocol["model"]["latents"] == [4, 8, 8]
    assert score.protocol["model"]["tokens"] == 1


def test_sample_distance_is_that_of_the_written_samples_to_the_held_out_images(scene: Scene) -> None:
    real, fake = FeatureStatistics(3), FeatureStatistics(3)
    for batch in EvaluationLoader(scene.images.held_out, scene.images.transform, batch_size=4):
        real.update(Means()(batch.pixel_values))
    written = [np.asarray(Image.open(path)) for path in sorted((scene.score.folder / "samples").iterdir())]
    fake.update(Means()(from_levels(torch.from_numpy(np.stack(written)).permute(0, 3, 1, 2))))
    # float32 features of other batches differ in their last bits
    assert scene.score.scores["sample_frechet_means"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    assert np.array_equal(scene.score.samples.permute(0, 2, 3, 1).numpy(), np.stack(written))


def test_normalized_latents_have_mean_0_and_std_1_in_each_channel(latents: ScoreLatents, scene: Scene) -> None:
    data = LatentDataset(scene.latents / TRAIN, spec=latents.spec)
    values = torch.stack([data[i]["latents"] for i in range(len(data))]).double()
    # float32 of the latents and of the statistics
    assert torch.allclose(values.mean(dim=(0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(values.std(dim=(0, 2, 3), correction=0), torch.ones(4, dtype=torch.float64), atol=1e-5)
    raw = torch.stack([LatentDataset(scene.latents / TRAIN)[i]["latents"] for i in range(2)])
    assert torch.allclose(latents.spec.unscale(latents.spec.scale(raw)), raw, atol=1e-5)


def test_packed_latents_are_normalized_per_packed_channel(scene: Scene) -> None:
    packed = ScoreLatents(scene.latents, replace(scene.model.latent_spec, patch_size=2), BUDGET)
    assert packed.shape == (16, 4, 4)
    data = LatentDataset(scene.latents / TRAIN, spec=packed.spec)
    values = torch.stack([data[i]["latents"] for i in range(len(data))]).double()
    assert torch.allclose(values.std(dim=(0, 2, 3), correction=0), torch.ones(16, dtype=torch.float64), atol=1e-5)


def test_flow_loss_of_an_untrained_network_is_the_distance_of_noise_and_latents(
    latents: ScoreLatents, scene: Scene
) -> None:
    network = ScoreTask(latents, BUDGET, image_size=16, identity={}).build_network()
    found = flow_losses(network, latents.held_out(CPU), (0.2, 0.9), seed=7)
    data = LatentDataset(scene.latents / HELD_OUT, spec=latents.spec)
    errors = []
    for i in range(len(data)):
        noise = seeded_noise(torch.tensor([derive_seed("flow loss", 7, i)]), (4, 8, 8))[0]
        errors.append(float((noise - data[i]["latents"]).square().mean()))
    assert found == pytest.approx({0.2: fmean(errors), 0.9: fmean(errors)}, rel=1e-6)


@pytest.mark.slow
def test_latents_of_images_have_a_lower_loss_than_noise(tmp_path: Path) -> None:
    """The same encoder twice; the second's posterior has a twenty times larger standard deviation than its mean."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(48):
        pixels = np.broadcast_to(random.integers(0, 256, 3, dtype=np.uint8), (16, 16, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "images" / f"{i}.png")
    images = split_images(open_source(tmp_path / "images"), ImageTransform(size=16), name="colours")
    budget = replace(BUDGET, steps=40, batch_size=16, learning_rate=5e-3, samples=2, model_batch_size=16)
    losses = []
    for log_variance in (-30.0, 6.0):
        model = small_model()
        with torch.no_grad():
            model.net.quant_conv.weight[4:].zero_()
            model.net.quant_conv.bias[4:] = log_variance
        found = diffusion_score(
            model, tmp_path / "scores", images=images, config=budget, features=[Means()], device="cpu"
        )
        losses.append(found.scores["flow_loss"])
    # The best prediction for pure noise, from `test_flow_loss_of_each_noise_level_is_that_of_the_prediction`.
    best = fmean(2 - (2 * s - 1) ** 2 / (s**2 + (1 - s) ** 2) for s in budget.noise_levels)
    assert losses[0] < 0.9 * best < losses[1]


# ------------------------------------------------------------------------------------------ equal for models


def test_two_models_get_the_same_images_and_times(
    scene: Scene, latents: ScoreLatents, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = compute(scene, model=small_model(1, latent_channels=8, block_out_channels=(8, 8, 16)))
    [place] = other.folder.parent.glob("latents-*")
    wide = ScoreLatents(place, replace(latents.spec, channels=8, latents_mean=None, latents_std=None), BUDGET)
    tasks = [ScoreTask(found, BUDGET, image_size=16, identity={}) for found in (latents, wide)]
    assert [task.batch(0)["latents"].shape[1:] for task in tasks] == [(4, 8, 8), (8, 4, 4)]
    for step in range(5):
        assert tasks[0].batch(step)["key"] == tasks[1].batch(step)["key"]
    times = []

    def network(noisy: Tensor, time: Tensor, class_labels: Tensor) -> Any:
        times.append(time)
        return type("Output", (), {"sample": torch.zeros_like(noisy)})

    for task in tasks:
        values = task.batch(0)["latents"]
        loop.training_loss(
            network,
            values,
            torch.zeros(4),
            "flow",
            generator=torch.Generator().manual_seed(0),  # type: ignore[arg-type]
        )
    assert torch.equal(*times)


def test_samples_do_not_depend_on_the_batch_size(scene: Scene, tmp_path: Path) -> None:
    copy = shutil.copytree(scene.folder, tmp_path / "scores")
    place = copy / scene.score.folder.relative_to(scene.folder)
    shutil.rmtree(place / "samples")
    found = compute(scene, folder=copy, config=replace(BUDGET, model_batch_size=5))
    assert found.folder == place
    difference = found.samples.int() - scene.score.samples.int()
    assert difference.abs().max() <= 1  # a sum in another order may round to the next level


# ------------------------------------------------------------------------------------------------- resuming and caching


@pytest.mark.slow
@pytest.mark.parametrize("how", ["crash in training", "signal", "crash in sampling"])
def test_resumed_score_equals_an_uninterrupted_one(
    how: str, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupting(real: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter(range(1000))

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if next(calls) == 1:
                if how == "signal":
                    os.kill(os.getpid(), signal.SIGINT)
                else:
                    raise ZeroDivisionError
            return real(*arguments, **options)

        return interrupted

    place, name = (score_module, "sample_latents") if "sampling" in how else (loop, "training_loss")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupting(getattr(place, name)))
        with pytest.raises(Stopped if how == "signal" else ZeroDivisionError):
            compute(scene, folder=tmp_path)
    assert ("is saved at step 2; rerun the same command" in caplog.text) == (how == "signal")
    torch.manual_seed(1234)  # the state of torch's own generator has no effect
    stages: list[tuple[str, int, int]] = []
    compute(scene, folder=tmp_path, progress=lambda *stage: stages.append(stage))
    trained = [done for stage, done, _ in stages if stage == "training"]
    assert trained == {"crash in training": [2, 3, 4], "signal": [3, 4], "crash in sampling": []}[how]
    sampled = [done for stage, done, _ in stages if stage == "sampling"]
    assert sampled == ([4, 5] if how == "crash in sampling" else [2, 4, 5])
    assert files(tmp_path / scene.score.folder.relative_to(scene.folder)) == files(scene.score.folder)


def test_finished_score_is_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("the score is finished")

    for name in ("encode", "DiffusionTrainer", "sample_latents", "frechet_distance", "only_writer"):
        monkeypatch.setattr(score_module, name, unexpected)
    found = compute(scene, config=replace(BUDGET, model_batch_size=3))
    assert torch.equal(found.samples, scene.score.samples)
    assert replace(found, samples=scene.score.samples) == scene.score


def test_another_distance_is_added_to_a_finished_score(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("latents and samples are there")

    for name in ("encode", "DiffusionTrainer", "sample_latents"):
        monkeypatch.setattr(score_module, name, unexpected)
    found = compute(scene, features=[Means(), Corners()])
    assert found.scores.keys() - scene.score.scores.keys() == {"sample_frechet_corners"}
    assert compute(scene).scores == scene.score.scores
    assert found.folder == scene.score.folder


@pytest.mark.slow
def test_each_model_and_each_protocol_has_its_own_folder(scene: Scene) -> None:
    found = compute(scene, config=replace(BUDGET, seed=1))
    assert found.folder.parent == scene.score.folder.parent
    assert found.folder != scene.score.folder
    assert not torch.equal(found.samples, scene.score.samples)
    assert compute(scene, model=small_model(2)).folder.parent != scene.score.folder.parent


@pytest.mark.parametrize("content", ["", "{}", '{"identity": {}, "scores": {"flow_loss": 1.0}}'])
def test_damaged_score_is_refused(content: str, scene: Scene, tmp_path: Path) -> None:
    copy = shutil.copytree(scene.folder, tmp_path / "scores")
    path = copy / scene.score.folder.relative_to(scene.folder) / "score.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"score.json is damaged .*; remove it to compute the score again"):
        compute(scene, folder=copy)


def test_network_is_an_average_without_classes(scene: Scene) -> None:
    weights = read_tensors(scene.score.folder / "network" / "diffusion_pytorch_model.safetensors")
    tables = [tensor for name, tensor in weights.items() if "embedding_table" in name]
    assert [len(table) for table in tables] == [1]
    assert float(weights["proj_out_2.weight"].abs().sum()) > 0


# ------------------------------------------------------------------------------------------ broken models


def test_latents_that_are_not_finite_cannot_be_scored(scene: Scene, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.net.quant_conv.bias[0] = torch.nan
    with pytest.raises(CannotScoreError, match=r"moments of .* is not finite|latents of .* is not finite"):
        compute(scene, folder=tmp_path, model=model)


def test_samples_that_are_not_finite_cannot_be_scored(scene: Scene, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.net.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(CannotScoreError, match="the decoded image of sample 0, sample 1 is not finite in fp32"):
        compute(scene, folder=tmp_path, model=model)


def test_constant_latents_cannot_be_scored(scene: Scene, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.net.quant_conv.weight.zero_()
        model.net.quant_conv.bias[4:] = -30.0
    with pytest.raises(CannotScoreError, match="the same everywhere"):
        compute(scene, folder=tmp_path, model=model)


def test_training_that_diverges_cannot_be_scored(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.training_loss
    monkeypatch.setattr(loop, "training_loss", lambda *arguments, **options: real(*arguments, **options) * torch.nan)
    with pytest.raises(CannotScoreError, match=r"the training of the diffusion network diverged: step 1 is not saved"):
        compute(scene, folder=tmp_path)


def test_images_that_do_not_fit_the_model_cannot_be_scored(scene: Scene, tmp_path: Path) -> None:
    images = replace(scene.images, transform=ImageTransform(size=15))
    with pytest.raises(CannotScoreError, match="not divisible by the model's downsample factor 2"):
        diffusion_score(scene.model, tmp_path, images=images, config=BUDGET, device="cpu")
