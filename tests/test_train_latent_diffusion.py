"""The latent diffusion trainer: it learns, and its pipelines open with only diffusers and sample correctly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTPipeline, LDMPipeline, VQModel
from torch.utils.data import DataLoader

from ldm_ae.data import ImageTransform, open_source
from ldm_ae.diffusion import NO_CLASS, TIMESTEPS
from ldm_ae.interop import export_diffusers
from ldm_ae.latents import LatentDataset, LatentStore, encode_images, endless
from ldm_ae.models import KLAutoencoder, VQAutoencoder, load_autoencoder
from ldm_ae.quantizers import FSQ, VQ
from ldm_ae.training.diffusion import networks, pipeline_run
from ldm_ae.training.diffusion import trainer as loop
from ldm_ae.training.diffusion.data import open_latents
from tests.scripts import load_script

pytestmark = pytest.mark.slow  # commands and trainings, half a second and longer together with their set-up


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    return load_script("train_latent_diffusion")


@pytest.fixture
def store(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> Path:
    """Twelve images in two classes as 8x8 latents, beside `autoencoder`, exported with their scale."""
    summary = encode_images(
        tiny_model, open_source(image_folder), tmp_path / "store", transform=ImageTransform(size=32), device="cpu"
    )
    export_diffusers(tiny_model, tmp_path / "autoencoder", scaling=summary.statistics)
    return tmp_path / "store"


def run(trainer: ModuleType, store: Path, out: Path, **changes: Any) -> int:
    options = dict(model="unet", steps=3, batch_size=4, width=32, depth=1, log_every=2, sample_every=0) | changes
    autoencoder = options.pop("autoencoder", store.parent / "autoencoder")
    words = ["--trackers", *options.pop("trackers", [])]
    words += [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return trainer.main(["--store", str(store), "--autoencoder", str(autoencoder), "--out", str(out), *words])


def weights(run: Path) -> bytes:
    return (run / "pipeline/unet/diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("model", ["unet", "dit"])
def test_saved_pipeline_opens_and_samples(
    model: str, objective: str, trainer: ModuleType, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trainer, store, tmp_path / "out", model=model, objective=objective) == 0
    shown = capsys.readouterr()
    assert shown.out == f"pipeline: {tmp_path / 'out' / 'pipeline'}\n"
    assert [line.split(":")[0] for line in shown.err.splitlines()] == ["precision", "step 2", "step 3", "finished"]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    assert type(pipeline) is (DiTPipeline if model == "dit" else LDMPipeline)
    pipeline.set_progress_bar_config(disable=True)
    classes = dict(class_labels=[0, 1]) if model == "dit" else dict(batch_size=2)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(**classes, num_inference_steps=3, generator=generator, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert math.isfinite(images.sum())
    assert images.std() > 0.01
    vae = pipeline.vae if model == "dit" else pipeline.vqvae
    exported = AutoencoderKL.from_pretrained(store.parent / "autoencoder")
    assert vae.config.scaling_factor == exported.config.scaling_factor
    assert all(torch.equal(value, exported.state_dict()[key]) for key, value in vae.state_dict().items())
    index = json.loads((tmp_path / "out/pipeline/model_index.json").read_text())
    assert all(library == "diffusers" for key, (library, _) in (
        (key, value) for key, value in index.items() if isinstance(value, list) and value[0] is not None
    ))  # fmt: skip


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("model", [pytest.param("unet", marks=pytest.mark.slow), "dit"])
def test_loss_of_a_fixed_batch_decreases(model: str, objective: str) -> None:
    latents = torch.randn(4, 4, 1, 1).expand(4, 4, 8, 8).contiguous()
    labels = torch.tensor([0, 1, 0, NO_CLASS]) if model == "dit" else None
    net = networks.build_model(model, 4, 8, 32, 1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)

    def loss(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return networks.training_loss(net, latents, labels, objective)

    def measured() -> float:
        with torch.no_grad():
            return sum(float(loss(seed)) for seed in range(100, 104)) / 4

    before = measured()
    for step in range(25):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert measured() < 0.8 * before


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_sampler_matches_the_objective(objective: str, tiny_model: KLAutoencoder) -> None:
    """With the exact prediction for data from N(0.7, 0.4^2), the pipeline's scheduler samples N(0.7, 0.4^2)."""
    mean, std = 0.7, 0.4
    net = networks.build_model("unet", 4, 8, 32, 1)
    scheduler = networks.build_pipeline("unet", objective, net, tiny_model.net).scheduler
    scheduler.set_timesteps(200)
    x = torch.randn(50_000, dtype=torch.float64) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        if objective == "flow":  # what training_loss pairs with this time
            sigma = time.double() / TIMESTEPS
            signal = 1 - sigma
        else:
            signal = networks.NOISE_SCHEDULE.alphas_cumprod[time].double().sqrt()
            sigma = (1 - signal**2).sqrt()
        start = mean + signal * std**2 / (signal**2 * std**2 + sigma**2) * (x - signal * mean)
        noise = (x - signal * start) / sigma
        x = scheduler.step(noise - start if objective == "flow" else noise, time, x).prev_sample
    # 200 steps leave about half a percent of discretization; 50,000 samples a third of a percent of chance.
    assert float(x.mean()) == pytest.approx(mean, rel=0.02)
    assert float(x.std()) == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_training_target_matches_the_sampler(objective: str) -> None:
    """The prediction that the test above samples with, computed from a batch and its times, has no loss."""
    latents = torch.randn(64, 4, 8, 8).double()

    class Exact(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, time: torch.Tensor) -> Any:
            if objective == "flow":
                sigma = (time / TIMESTEPS).double().view(-1, 1, 1, 1)
                signal = 1 - sigma
            else:
                signal = networks.NOISE_SCHEDULE.alphas_cumprod[time].double().sqrt().view(-1, 1, 1, 1)
                sigma = (1 - signal**2).sqrt()
            noise = (noisy - signal * latents) / sigma
            assert float(noise.std()) == pytest.approx(1.0, abs=0.05)  # 16,384 normals, give or take float32 of sigma
            return type("Output", (), {"sample": noise - latents if objective == "flow" else noise})

    # Times and noise schedules are float32, and dividing by a small sigma magnifies their 1e-7; a wrong sign gives 4.
    assert float(networks.training_loss(Exact(), latents, None, objective)) < 1e-4


def test_flow_loss_of_each_noise_level_is_that_of_the_prediction() -> None:
    latents = torch.randn(256, 4, 8, 8, generator=torch.Generator().manual_seed(9))  # unlike the noise

    class Gaussian(torch.nn.Module):
        """The best prediction for latents from N(0, 1)."""

        def forward(self, noisy: torch.Tensor, time: torch.Tensor, class_labels: torch.Tensor) -> Any:
            sigma = (time / TIMESTEPS).view(-1, 1, 1, 1)
            return type("Output", (), {"sample": noisy * (2 * sigma - 1) / (sigma**2 + (1 - sigma) ** 2)})

    labels = torch.zeros(256, dtype=torch.int64)

    def losses(levels: tuple[float, ...], size: int = 256, **options: Any) -> dict[float, float]:
        batches = zip(latents.split(size), labels.split(size), strict=True)
        return networks.flow_losses(Gaussian(), batches, levels, **options)

    found = losses((0.1, 0.5, 0.8))
    expected = {s: 2 - (2 * s - 1) ** 2 / (s**2 + (1 - s) ** 2) for s in (0.1, 0.5, 0.8)}
    assert found == pytest.approx(expected, abs=0.03)
    assert losses((0.1, 0.5, 0.8), size=100) == pytest.approx(found, rel=1e-6)
    assert losses((0.5,), seed=1)[0.5] != found[0.5]
    some = [losses((0.5,), channels=torch.tensor(mask))[0.5] for mask in ([True, True, False, False],
                                                                         [False, False, True, True])]  # fmt: skip
    assert sum(some) / 2 == pytest.approx(found[0.5], rel=1e-6)
    assert some[0] != some[1]
    assert networks.flow_losses(Gaussian(), [], (0.5,)) == {}


def test_training_is_reproducible(trainer: ModuleType, store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(trainer, store, tmp_path / name) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("per_channel", [{}, {"latents_mean": (5.0,) * 4, "latents_std": (2.0,) * 4}])
def test_training_uses_the_scale_of_the_store(
    per_channel: dict[str, Any], trainer: ModuleType, store: Path, tiny_model: KLAutoencoder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    std = LatentStore(store).statistics.pooled_std
    tiny_model.set_scaling(scaling_factor=10 / std, **per_channel)
    autoencoder = export_diffusers(tiny_model, tmp_path / "unmeasured")
    seen: list[torch.Tensor] = []
    real = loop.training_loss

    def watched(model: Any, latents: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(latents)
        return real(model, latents, *rest, **options)

    monkeypatch.setattr(loop, "training_loss", watched)
    assert run(trainer, store, tmp_path / "out", autoencoder=autoencoder, batch_size=12, steps=1) == 0
    vae = DiffusionPipeline.from_pretrained(tmp_path / "out/pipeline").vqvae
    assert vae.config.scaling_factor == 1 / std
    assert vae.config.latents_mean is None
    # Half of them are mirror images, which the statistics leave out, and all are drawn anew.
    assert float(seen[0].std()) == pytest.approx(1.0, abs=0.05)


def test_pipeline_of_a_discrete_model_opens(
    trainer: ModuleType, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False)
    source, transform = open_source(image_folder), ImageTransform(size=16)
    for name, quantizer in (("vq", VQ(codebook_size=16, codebook_dim=4)), ("fsq", FSQ(levels=(5, 5, 5)))):
        model = VQAutoencoder(quantizer=quantizer, **networks)
        model.save_pretrained(tmp_path / name)
        encode_images(model, source, tmp_path / f"{name} store", transform=transform, device="cpu")
    assert run(trainer, tmp_path / "vq store", tmp_path / "out", autoencoder=tmp_path / "vq") == 0
    opened = DiffusionPipeline.from_pretrained(tmp_path / "out/pipeline").vqvae
    assert type(opened) is VQModel
    assert opened.config.scaling_factor == 1 / LatentStore(tmp_path / "vq store").statistics.pooled_std
    ours = load_autoencoder(tmp_path / "vq")
    latents = ours.encode(torch.rand(1, 3, 16, 16)).mode()
    # float32's rounding: diffusers adds the step from the latents to their codes, ours takes the codes.
    torch.testing.assert_close(opened.decode(latents).sample, ours.decode(latents))
    assert run(trainer, tmp_path / "fsq store", tmp_path / "none", autoencoder=tmp_path / "fsq") == 2
    assert "diffusers has no QuantizedAutoencoder" in capsys.readouterr().err
    encode_images(model, source, tmp_path / "codes", transform=transform, device="cpu", content="lean", flips=False)
    assert run(trainer, tmp_path / "codes", tmp_path / "none", autoencoder=tmp_path / "fsq") == 2
    assert "holds indices, no latents" in capsys.readouterr().err


def test_epochs_draw_new_samples_from_moments(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    def epochs(name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first image in two epochs, and as it is stored or, without latents, its mean."""
        encode_images(
            tiny_model, open_source(image_folder), tmp_path / name, transform=ImageTransform(size=32), device="cpu",
            flips=False, **options,
        )  # fmt: skip
        found = LatentStore(tmp_path / name)
        data = open_latents(found, found.spec, 0)
        other = LatentDataset(found, draw="mode" if options.get("content") == "lean" else "stored", spec=found.spec)
        stream = endless(DataLoader(data, batch_size=len(data)), data)
        return next(stream)["latents"][0], next(stream)["latents"][0], other[0]["latents"]

    for name in ("full", "lean"):
        first, second, _ = epochs(name, content=name)
        assert not torch.equal(first, second)
    for name, options in (("samples", {"content": "samples"}), ("mode", {"content": "lean", "latents": "mode"})):
        first, second, expected = epochs(name, **options)
        assert torch.equal(first, second)
        assert torch.equal(first, expected)


def test_dit_is_trained_on_the_labels_of_the_store(
    trainer: ModuleType, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = loop.training_loss

    def watched(model: Any, latents: torch.Tensor, labels: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(labels)
        return real(model, latents, labels, *rest, **options)

    monkeypatch.setattr(loop, "training_loss", watched)
    monkeypatch.setattr(pipeline_run, "LABEL_DROPOUT", 0.0)
    assert run(trainer, store, tmp_path / "kept", model="dit", steps=3) == 0  # four images a step
    assert sorted(torch.cat(seen).tolist()) == [0] * 6 + [1] * 6
    seen.clear()
    monkeypatch.setattr(pipeline_run, "LABEL_DROPOUT", 1.0)
    assert run(trainer, store, tmp_path / "dropped", model="dit", steps=1) == 0
    assert torch.cat(seen).tolist() == [NO_CLASS] * 4


def test_invalid_options_are_refused_in_one_line(
    trainer: ModuleType, store: Path, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def another_store(name: str, folder: Path, size: int | tuple[int, int]) -> Path:
        transform = ImageTransform(size=size)
        encode_images(tiny_model, open_source(folder), tmp_path / name, transform=transform, device="cpu")
        return tmp_path / name

    wide = another_store("wide", image_folder, (32, 40))
    no_labels = another_store("no labels", image_folder / "cats", 32)
    ours = store.parent / "autoencoder"
    with torch.no_grad():
        tiny_model.last_layer.mul_(2)
    other = export_diffusers(tiny_model, tmp_path / "other")
    out = tmp_path / "out"
    for place, target, changes, message in (
        (store, out, dict(autoencoder=other), "made by another model"),
        (store, out, dict(autoencoder=tmp_path / "nowhere"), "no such model"),
        (store, out, dict(steps=0), "--steps is 0; it must be at least 1"),
        (store, out, dict(width=33), "multiple of 32"),
        (store, store, {}, "holds other files"),
        (image_folder, out, dict(autoencoder=ours), "not a latent store"),
        (wide, out, dict(autoencoder=ours), "images of 32x40; a pipeline needs one square size"),
        (no_labels, out, dict(autoencoder=ours, model="dit"), "has no labels, which dit requires"),
    ):
        assert run(trainer, place, target, **changes) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert not out.exists()
