"""The latent diffusion trainer: it learns, and its pipelines open with diffusers alone and sample rightly."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTPipeline, LDMPipeline

from ldm_ae.data import ImageTransform, open_source
from ldm_ae.interop import export_diffusers
from ldm_ae.latents import LatentStore, encode_images
from ldm_ae.models import KLAutoencoder

# DPMSolverMultistepScheduler calls np.array on a tensor, which NumPy 2 deprecates and torch still answers correctly.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SCRIPT = Path(__file__).parents[1] / "scripts/train_latent_diffusion.py"


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_latent_diffusion", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> Path:
    """Twelve pictures in two classes as 8x8 latents, beside `autoencoder`, exported with their scale."""
    summary = encode_images(
        tiny_model, open_source(image_folder), tmp_path / "store", transform=ImageTransform(size=32), device="cpu"
    )
    export_diffusers(tiny_model, tmp_path / "autoencoder", scaling=summary.statistics)
    return tmp_path / "store"


def run(trainer: ModuleType, store: Path, out: Path, **changes: Any) -> int:
    options = dict(model="unet", objective="flow", steps=3, batch_size=4, width=32, depth=1, log_every=2) | changes
    autoencoder = options.pop("autoencoder", store.parent / "autoencoder")
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return trainer.main(["--store", str(store), "--autoencoder", str(autoencoder), "--out", str(out), *words])


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("model", ["unet", "dit"])
def test_the_pipeline_opens_and_samples(
    model: str, objective: str, trainer: ModuleType, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trainer, store, tmp_path / "out", model=model, objective=objective) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["step 2", "step 3"]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
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
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert all(library == "diffusers" for key, (library, _) in (
        (key, value) for key, value in index.items() if isinstance(value, list) and value[0] is not None
    ))  # fmt: skip


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("model", ["unet", "dit"])
def test_the_loss_of_a_fixed_batch_goes_down(model: str, objective: str, trainer: ModuleType) -> None:
    latents = torch.randn(4, 4, 1, 1).expand(4, 4, 8, 8).contiguous()
    labels = torch.tensor([0, 1, 0, trainer.NO_CLASS]) if model == "dit" else None
    net = trainer.build_model(model, 4, 8, 32, 1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)

    def loss(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return trainer.training_loss(net, latents, labels, objective)

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
def test_the_sampler_fits_the_objective(objective: str, trainer: ModuleType, tiny_model: KLAutoencoder) -> None:
    """With the exact prediction for data from N(0.7, 0.4^2) put in, the pipeline's scheduler samples N(0.7, 0.4^2)."""
    mean, std = 0.7, 0.4
    net = trainer.build_model("unet", 4, 8, 32, 1)
    scheduler = trainer.build_pipeline("unet", objective, net, tiny_model).scheduler
    scheduler.set_timesteps(200)
    x = torch.randn(50_000, dtype=torch.float64) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        if objective == "flow":  # what training_loss pairs with this time
            sigma = time.double() / trainer.TIMESTEPS
            signal = 1 - sigma
        else:
            signal = trainer.NOISE_SCHEDULE.alphas_cumprod[time].double().sqrt()
            sigma = (1 - signal**2).sqrt()
        start = mean + signal * std**2 / (signal**2 * std**2 + sigma**2) * (x - signal * mean)
        noise = (x - signal * start) / sigma
        x = scheduler.step(noise - start if objective == "flow" else noise, time, x).prev_sample
    # 200 steps leave about half a percent of discretization; 50,000 samples a third of a percent of chance.
    assert float(x.mean()) == pytest.approx(mean, rel=0.02)
    assert float(x.std()) == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_training_asks_for_what_the_sampler_takes(objective: str, trainer: ModuleType) -> None:
    """The prediction that the test above samples with, computed from a batch and its times, has no loss."""
    latents = torch.randn(64, 4, 8, 8).double()

    class Exact(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, time: torch.Tensor) -> Any:
            if objective == "flow":
                sigma = (time / trainer.TIMESTEPS).double().view(-1, 1, 1, 1)
                signal = 1 - sigma
            else:
                signal = trainer.NOISE_SCHEDULE.alphas_cumprod[time].double().sqrt().view(-1, 1, 1, 1)
                sigma = (1 - signal**2).sqrt()
            noise = (noisy - signal * latents) / sigma
            assert float(noise.std()) == pytest.approx(1.0, abs=0.05)  # 16,384 normals, give or take float32 of sigma
            return type("Output", (), {"sample": noise - latents if objective == "flow" else noise})

    # Times and noise schedules are float32, and dividing by a small sigma magnifies their 1e-7; a wrong sign gives 4.
    assert float(trainer.training_loss(Exact(), latents, None, objective)) < 1e-4


def test_the_same_seed_gives_the_same_model(trainer: ModuleType, store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(trainer, store, tmp_path / name) == 0
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


def test_mistakes_get_one_line(
    trainer: ModuleType, store: Path, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def export(name: str, scaling_factor: float, **per_channel: Any) -> Path:
        tiny_model.set_scaling(scaling_factor=scaling_factor, **per_channel)
        return export_diffusers(tiny_model, tmp_path / name)

    def wide_store() -> Path:
        source, transform = open_source(image_folder), ImageTransform(size=(32, 40))
        encode_images(tiny_model, source, tmp_path / "wide", transform=transform, device="cpu")
        return tmp_path / "wide"

    std = LatentStore(store).statistics.pooled_std
    wide = wide_store()
    unscaled = export("unscaled", 10 / std)
    per_channel = export("per_channel", 1 / std, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    with torch.no_grad():
        tiny_model.last_layer.mul_(2)
    out = tmp_path / "out"
    for place, target, changes, message in (
        (store, out, dict(autoencoder=export("other", 1 / std)), "made by another model"),
        (store, out, dict(autoencoder=unscaled), "deviation 10, not about 1"),
        (store, out, dict(autoencoder=per_channel), "which the pipelines ignore"),
        (store, out, dict(autoencoder=tmp_path / "nowhere"), "no such model"),
        (store, out, dict(steps=0), "--steps must be at least 1"),
        (store, out, dict(width=33), "multiple of 32"),
        (store, store, {}, "is there already"),
        (image_folder, out, dict(autoencoder=unscaled), "no latent store"),
        (wide, out, dict(autoencoder=store.parent / "autoencoder"), "images of 32x40; the pipelines make squares"),
    ):
        assert run(trainer, place, target, **changes) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert not out.exists()
