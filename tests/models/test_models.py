"""The interface, the scaling, the statistics, and every way a model folder can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from ldm_ae.core.errors import UserError
from ldm_ae.models import (
    ChannelStatistics,
    GaussianPosterior,
    KLAutoencoder,
    LatentSpec,
    for_inference,
    load_autoencoder,
    model_hash,
    model_place,
    pick_device,
)  # fmt: skip


def test_encode_and_decode_equal_those_of_diffusers(tiny_model: KLAutoencoder) -> None:
    x, noise = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 8, 8)
    theirs = tiny_model.net.encode(x).latent_dist
    output = tiny_model(x, noise)
    assert torch.equal(output.posterior.mode(), theirs.mean)
    assert torch.allclose(
        output.reconstructions, tiny_model.net.decode(theirs.mean + theirs.std * noise).sample, atol=1e-6
    )
    assert output.posterior.rate().shape == (2,)
    assert torch.equal(tiny_model.last_layer, tiny_model.net.decoder.conv_out.weight)


def test_posterior_samples_follow_its_moments() -> None:
    posterior = GaussianPosterior(torch.cat([torch.full((1, 2, 64, 64), 3.0), torch.full((1, 2, 64, 64), 2.0)], dim=1))
    sample = posterior.sample(torch.Generator().manual_seed(0))
    assert torch.equal(sample, posterior.sample(torch.Generator().manual_seed(0)))
    # 8,192 draws: the mean is within 4 standard errors of e / 90, the standard deviation within 4 of e / 128.
    assert sample.mean() == pytest.approx(3.0, abs=0.12)
    assert sample.std() == pytest.approx(2.71828, abs=0.09)
    wild = GaussianPosterior(torch.full((1, 2, 1, 1), 1e6))
    assert wild.log_variance.max() == 20
    assert GaussianPosterior(torch.full((1, 2, 1, 1), -1e6)).log_variance.min() == -30


def test_scaling_round_trip() -> None:
    latents = torch.randn(2, 2, 4, 4)
    pooled = LatentSpec(channels=2, downsample_factor=8, scaling_factor=0.5, shift_factor=1.0)
    assert torch.allclose(pooled.scale(latents), (latents - 1) * 0.5)
    each = LatentSpec(channels=2, downsample_factor=8, scaling_factor=9.0, latents_mean=(1, 2), latents_std=(2, 4))
    expected = 9.0 * torch.stack([(latents[:, 0] - 1) / 2, (latents[:, 1] - 2) / 4], dim=1)  # as SDXL's pipelines
    assert torch.allclose(each.scale(latents), expected)
    for spec in (pooled, each):
        assert torch.allclose(spec.unscale(spec.scale(latents)), latents, atol=1e-6)


def test_latent_size_follows_the_downsample_factor() -> None:
    spec = LatentSpec(channels=4, downsample_factor=8, scaling_factor=1.0)
    assert spec.latent_size(64, 32) == (8, 4)
    with pytest.raises(UserError, match=r"64x100 is not divisible .* factor 8; use for example 64x96"):
        spec.latent_size(64, 100)


def test_channel_statistics_do_not_depend_on_batches() -> None:
    latents = torch.randn(30, 3, 5, 7) * torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1) + 100
    whole, parts, other = ChannelStatistics(3), ChannelStatistics(3), ChannelStatistics(3)
    whole.update(latents)
    parts.update(latents[:1])
    parts.update(latents[1:13])
    other.update(latents[13:])
    parts.merge(other)
    parts = ChannelStatistics.from_state(json.loads(json.dumps(parts.state())))
    values = latents.double().transpose(0, 1).flatten(1)
    for statistics in (whole, parts):
        assert statistics.count == 30 * 35
        # float64 sums of a thousand values around 100
        assert torch.allclose(statistics.channel_mean, values.mean(dim=1), rtol=1e-12)
        assert torch.allclose(statistics.channel_std, values.std(dim=1, correction=0), rtol=1e-10)
        assert statistics.pooled_mean == pytest.approx(float(values.mean()), rel=1e-12)
        assert statistics.pooled_std == pytest.approx(float(values.std(correction=0)), rel=1e-10)


def test_initial_log_variance_is_applied() -> None:
    kwargs = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    for wanted in (None, -6.0):
        posterior = KLAutoencoder(**kwargs, initial_log_variance=wanted).encode(torch.rand(1, 3, 16, 16))  # type: ignore[arg-type]
        assert posterior.log_variance.mean().item() == pytest.approx(wanted or 0.0, abs=1.0)


def test_inference_precisions_cast_weights(tiny_model_folder: Path) -> None:
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = load_autoencoder(tiny_model_folder)(x, torch.zeros(1, 4, 8, 8)).reconstructions
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.05), ("fp16", 0.01)):  # 24, 8 and 11 bits
        model = for_inference(load_autoencoder(tiny_model_folder), device="cpu", precision=precision)
        posterior = model.encode(x)
        found = model.decode(posterior.mode())
        assert posterior.moments.dtype == found.dtype == torch.float32
        assert (found - expected).abs().max() < tolerance * expected.abs().max()
    with pytest.raises(UserError, match="precision 'int8' is not one of auto, fp32, bf16, fp16"):
        for_inference(model, precision="int8")
    with pytest.raises(UserError, match="device 'cuda:77' is not available"):
        pick_device("cuda:77")


def test_model_hash_depends_on_weights_and_not_on_scale(tiny_model: KLAutoencoder) -> None:
    first = model_hash(tiny_model)
    tiny_model.set_scaling(scaling_factor=0.3)
    tiny_model.set_sample_size(512)
    assert model_hash(tiny_model) == first
    with torch.no_grad():
        tiny_model.last_layer[0, 0, 0, 0] += 1e-3
    assert model_hash(tiny_model) != first


def test_wrong_shapes_are_refused_by_name(tiny_model: KLAutoencoder) -> None:
    with pytest.raises(UserError, match=r"pixel_values must be \(B, 3, H, W\), got \(3, 32, 32\)"):
        tiny_model.encode(torch.zeros(3, 32, 32))
    with pytest.raises(UserError, match=r"latents must be \(B, 4, h, w\), got \(1, 3, 8, 8\)"):
        tiny_model.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="block_out_channels: 9 is not divisible by norm_num_groups=4"):
        KLAutoencoder(block_out_channels=(8, 9), norm_num_groups=4)
    with pytest.raises(UserError, match="attention_levels: expected levels from 0 to 1, got 2"):
        KLAutoencoder(block_out_channels=(8, 8), norm_num_groups=4, attention_levels=(2,))


def test_attention_levels_are_diffusers_blocks() -> None:
    net = KLAutoencoder(block_out_channels=(8, 8, 8), norm_num_groups=4, attention_levels=(2,)).net
    assert net.config.down_block_types == ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    assert net.config.up_block_types == ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D")


def test_models_of_runs_and_checkpoints_are_opened(tiny_model_folder: Path, tmp_path: Path) -> None:
    assert model_place(tiny_model_folder) == tiny_model_folder
    assert model_place(tmp_path) == tiny_model_folder  # a run's model/
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    for name in ("model", "ema"):
        AutoencoderKL.from_pretrained(tiny_model_folder).save_pretrained(checkpoint / name)
    assert model_place(checkpoint) == checkpoint / "ema"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("class", "holds a UNet2DModel, a diffusion model .*: AsymmetricAutoencoderKL"),
        ("json", "is not valid JSON"),
        ("no class", "has no _class_name"),
        ("shape", "cannot be loaded as AutoencoderKL"),
        ("cut", "cannot be loaded as AutoencoderKL"),
    ],
)
def test_damaged_model_folders_are_refused(tiny_model_folder: Path, damage: str, words: str) -> None:
    path, weights = tiny_model_folder / "config.json", tiny_model_folder / "diffusion_pytorch_model.safetensors"
    config = json.loads(path.read_text())
    if damage == "class":
        path.write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    elif damage == "json":
        path.write_text("{")
    elif damage == "no class":
        path.write_text("{}")
    elif damage == "shape":
        path.write_text(json.dumps(config | {"latent_channels": 7}))
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=words) as error:
        load_autoencoder(tiny_model_folder)
    assert len(str(error.value).splitlines()) <= 2
