"""The protocol of the diffusion score: its images, its network for latents of every shape, its normalization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.models import ChannelStatistics, LatentSpec
from ldm_ae.training.diffusion.score_latents import normalizing
from ldm_ae.training.diffusion.score_network import build_network, no_label, patch_size_of, sample_latents
from ldm_ae.training.diffusion.score_protocol import DiffusionScoreConfig, describe, split_images

SPEC = LatentSpec(channels=2, downsample_factor=8, scaling_factor=0.5, shift_factor=3.0)


def test_images_are_split_by_their_keys(image_folder: Path) -> None:
    source, transform = open_source(image_folder), ImageTransform(size=32)
    images = split_images(source, transform, name="photos")
    keys = [[part.key(i) for i in range(len(part))] for part in (images.train, images.held_out)]
    assert [len(part) for part in keys] == [9, 3]
    assert sorted(keys[0] + keys[1]) == sorted(source.key(i) for i in range(12))
    assert images.name == "photos; 3 of 12 images held out by the hashes of their keys"
    assert split_images(source, transform, name="photos").identity() == images.identity()
    whole = split_images(source, transform, name="photos", held_out=images.held_out)
    assert (len(whole.train), len(whole.held_out)) == (12, 3)


def test_split_needs_two_images_on_each_side(image_folder: Path) -> None:
    with pytest.raises(UserError, match=r"at least 2 images to train on and 2 that are held out, got 11 and 1"):
        split_images(open_source(image_folder), ImageTransform(size=32), name="photos", held_out=1)
    with pytest.raises(UserError, match="square images without random crops"):
        split_images(open_source(image_folder), ImageTransform(size=(32, 64)), name="photos")


def test_identity_of_images_changes_with_files_and_transform(image_folder: Path) -> None:
    def identity(size: int = 32) -> dict[str, Any]:
        return split_images(open_source(image_folder), ImageTransform(size=size), name="photos").identity()

    before = identity()
    assert identity(64) != before
    path = next(image_folder.rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"\0")
    assert identity() != before


@pytest.mark.parametrize(
    ("change", "value"),
    [("steps", 10), ("batch_size", 8), ("width", 64), ("depth", 2), ("learning_rate", 1e-2), ("samples", 9),
     ("sampling_steps", 9), ("noise_levels", (0.5,)), ("seed", 1), ("precision", "bf16"), ("model_precision", "bf16")],
)  # fmt: skip
def test_protocol_has_every_option_that_changes_a_score(change: str, value: Any, image_folder: Path) -> None:
    images = split_images(open_source(image_folder), ImageTransform(size=32), name="photos")
    config = DiffusionScoreConfig()
    assert describe(images, replace(config, **{change: value})) != describe(images, config)
    assert describe(images, replace(config, model_batch_size=3, workers=1)) == describe(images, config)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("steps", 0),
        ("samples", 1),
        ("noise_levels", (0.0, 0.5)),
        ("noise_levels", ()),
        ("workers", -1),
        ("width", 40),
        ("learning_rate", 0.0),
    ],
)
def test_protocol_refuses_impossible_budgets(change: str, value: Any) -> None:
    with pytest.raises(UserError, match=change):
        DiffusionScoreConfig(**{change: value})


@pytest.mark.parametrize(
    ("latent_size", "image_size", "patch_size"),
    [
        (64, 256, 4),
        (32, 256, 2),
        (16, 256, 1),
        (8, 256, 1),
        (8, 64, 2),
        (16, 64, 4),
        (2, 64, 1),
        (4, 8, 4),
        (9, 144, 1),
    ],
)
def test_patches_give_a_token_for_16x16_pixels(latent_size: int, image_size: int, patch_size: int) -> None:
    assert patch_size_of(latent_size, image_size) == patch_size


def test_networks_of_different_latents_share_all_inner_weights() -> None:
    networks = [
        build_network(channels, size, image_size=64, width=32, depth=2, seed=3)
        for channels, size in ((4, 8), (8, 4))
    ]  # fmt: skip
    states = [dict(network.named_parameters()) for network in networks]
    assert states[0].keys() == states[1].keys()
    different = {name for name in states[0] if states[0][name].shape != states[1][name].shape}
    assert different == {"pos_embed.proj.weight", "proj_out_2.weight", "proj_out_2.bias"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0].keys() - different)
    blocks = [states[0][f"transformer_blocks.{i}.attn1.to_q.weight"] for i in (0, 1)]
    assert not torch.equal(*blocks)
    with torch.no_grad():
        output = networks[0](torch.randn(2, 4, 8, 8), torch.tensor([1.0, 500.0]), no_label(2, blocks[0].device))
    assert float(output.sample.abs().max()) == 0.0


def test_samples_of_a_perfect_network_have_the_distribution_of_the_latents() -> None:
    """With the exact prediction for latents from N(0.7, 0.4²), samples are from N(0.7, 0.4²)."""
    mean, std = 0.7, 0.4

    class Perfect(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, time: torch.Tensor, class_labels: torch.Tensor) -> Any:
            assert class_labels.tolist() == [0] * len(noisy)
            sigma = (time / 1000).view(-1, 1, 1, 1)
            signal = 1 - sigma
            start = mean + signal * std**2 / (signal**2 * std**2 + sigma**2) * (noisy - signal * mean)
            return type("Output", (), {"sample": (noisy - start) / sigma.clamp(min=1e-6)})

    found = sample_latents(Perfect(), (4, 16, 16), torch.arange(16), 50, torch.device("cpu"))
    assert found.shape == (16, 4, 16, 16)
    # 50 steps leave about a percent of discretization; 16,384 samples half a percent of chance.
    assert float(found.mean()) == pytest.approx(mean, rel=0.03)
    assert float(found.std()) == pytest.approx(std, rel=0.03)


def test_channels_are_normalized_by_their_own_statistics() -> None:
    latents = torch.randn(8, 2, 4, 4) * torch.tensor([3.0, 0.2]).view(1, 2, 1, 1) + 5.0
    statistics = ChannelStatistics(2)
    statistics.update(latents)
    spec = normalizing(SPEC, statistics)
    expected = (latents - latents.mean(dim=(0, 2, 3), keepdim=True)) / latents.std(
        dim=(0, 2, 3), correction=0, keepdim=True
    )
    assert torch.allclose(spec.scale(latents), expected, atol=1e-5)


def test_constant_channel_is_zero_and_stays_as_it_is() -> None:
    """Rounding errors are not scaled up, and a sample that is not exactly 0 there does not change the channel."""
    latents = torch.randn(8, 2, 4, 4)
    latents[:, 1] = 1.0 + 1e-7 * torch.randn(8, 4, 4)
    statistics = ChannelStatistics(2)
    statistics.update(latents)
    spec = normalizing(SPEC, statistics)
    scaled = spec.scale(latents)
    assert float(scaled[:, 1].abs().max()) < 0.1
    assert torch.allclose(spec.unscale(torch.randn(8, 2, 4, 4))[:, 1], torch.ones(8, 4, 4), atol=1e-4)
