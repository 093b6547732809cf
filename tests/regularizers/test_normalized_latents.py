"""Normalized latents: running statistics that are the trained model's scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, DeterministicPosterior, GaussianPosterior, KLAutoencoder
from ldm_ae.models.adapters.flux2 import Flux2Autoencoder
from ldm_ae.models.scaling import scale_is_known, set_scaling_of
from ldm_ae.regularizers import Chain, GaussianNoise
from ldm_ae.regularizers.normalized_latents import NormalizedLatents


def prepared(model: Autoencoder | None = None, **arguments: float) -> NormalizedLatents:
    regularizer = NormalizedLatents(**arguments)
    regularizer.prepare(KLAutoencoder.example("AutoencoderKL") if model is None else model)
    return regularizer


def latents(seed: int, count: int = 4, side: int = 6) -> Tensor:
    values = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([1.0, 2.0, 0.5, 3.0]).view(-1, 1, 1) + torch.arange(4.0).view(-1, 1, 1)


def gaussian(mean: Tensor, log_variance: float) -> GaussianPosterior:
    return GaussianPosterior(torch.cat([mean, torch.full_like(mean, log_variance)], dim=1))


def test_decoder_gets_the_latents_unchanged() -> None:
    given, images = latents(0), torch.zeros(4, 3, 12, 12)
    found = prepared()(gaussian(given, 0.0), given, images, Draws(range(4), REGULARIZER))
    assert found.latents is given
    assert found.target is images
    assert found.terms == {}


def test_statistics_are_those_of_batch_normalization() -> None:
    """Of latents without a distribution: at first the average of all updates, then with a fixed momentum."""
    regularizer = prepared(momentum=0.25)
    norm = nn.BatchNorm2d(4, affine=False, momentum=None)  # a cumulative average
    for seed in range(4):
        norm(latents(seed))
        regularizer.learn([DeterministicPosterior(latents(seed))])
    assert torch.allclose(regularizer.running_mean, norm.running_mean, atol=1e-6)
    assert torch.allclose(regularizer.running_var, norm.running_var, rtol=1e-6)
    norm.momentum = 0.25
    norm(latents(4))
    regularizer.learn([DeterministicPosterior(latents(4))])
    assert torch.allclose(regularizer.running_mean, norm.running_mean, atol=1e-6)
    assert torch.allclose(regularizer.running_var, norm.running_var, rtol=1e-6)
    assert int(regularizer.updates) == 5


def test_variance_includes_that_of_the_posterior_by_hand() -> None:
    """Means 1 and 3 (unbiased variance 2 of four values: 4/3), each with a variance of 4 (counted 4/3 times)."""
    regularizer = prepared()
    mean = torch.tensor([1.0, 3.0, 1.0, 3.0]).view(1, 1, 2, 2).expand(1, 4, 2, 2)
    regularizer.learn([gaussian(mean, torch.tensor(4.0).log().item())])
    assert regularizer.running_mean.tolist() == pytest.approx([2.0] * 4)
    assert regularizer.running_var.tolist() == pytest.approx([(1 + 4) * 4 / 3] * 4)


def test_micro_batches_learn_as_one_batch() -> None:
    whole, parts = prepared(), prepared()
    for seed in (0, 1):
        values = latents(seed)
        whole.learn([gaussian(values, -1.0)])
        parts.learn([gaussian(values[:1], -1.0), gaussian(values[1:], -1.0)])
    for name, buffer in whole.named_buffers():
        assert torch.allclose(dict(parts.named_buffers())[name], buffer, rtol=1e-6), name
    assert set(whole.state_dict()) == {"running_mean", "running_var", "updates"}


def test_scale_of_flux2_is_its_batch_normalization(tmp_path: Path) -> None:
    """FLUX.2's pipeline: pack 2x2 latents, subtract `bn.running_mean`, divide by sqrt(`bn.running_var` + eps)."""
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    model = Flux2Autoencoder.example("AutoencoderKLFlux2")
    regularizer = prepared(model)
    assert regularizer.scale(model) is None  # nothing is learned yet
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        regularizer.learn([model.encode(images)])
    spec = regularizer.scale(model)
    assert spec is not None
    set_scaling_of(model, spec)
    assert scale_is_known(model)
    model.save_pretrained(tmp_path)

    net = AutoencoderKLFlux2.from_pretrained(tmp_path)
    assert torch.equal(net.bn.running_mean, regularizer.running_mean)
    assert torch.allclose(net.bn.running_var, regularizer.running_var, rtol=1e-6)
    with torch.no_grad():
        mode = net.encode(images).latent_dist.mode()
    batch, channels, height, width = mode.shape
    packed = mode.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    packed = packed.reshape(batch, 4 * channels, height // 2, width // 2)
    std = torch.sqrt(net.bn.running_var.view(1, -1, 1, 1) + net.config.batch_norm_eps)
    expected = (packed - net.bn.running_mean.view(1, -1, 1, 1)) / std
    assert torch.allclose(model.scale(mode), expected, atol=1e-5)
    assert torch.allclose(model.scale(mode).mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-4)


def test_sides_that_do_not_fill_a_patch_are_left_out() -> None:
    model = Flux2Autoencoder.example("AutoencoderKLFlux2")
    odd, even = prepared(model), prepared(model)
    values = latents(0, side=5)
    odd.learn([DeterministicPosterior(values)])
    even.learn([DeterministicPosterior(values[..., :4, :4])])
    assert torch.equal(odd.running_mean, even.running_mean)


def test_scale_of_other_classes_is_stored_as_they_can_store_it() -> None:
    model = KLAutoencoder.example("AutoencoderKL")
    regularizer = prepared(model, eps=0.0)
    values = latents(0)
    regularizer.learn([DeterministicPosterior(values)])
    regularizer.learn([DeterministicPosterior(values)])
    found = regularizer.scale(model)
    assert found is not None
    assert found.latents_mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert found.latents_std == pytest.approx(values.transpose(0, 1).flatten(1).std(dim=1).tolist(), rel=1e-5)
    assert found.scaling_factor == 1.0
    # Pipelines that read a shift ignore vectors.
    set_scaling_of(model, replace(model.latent_spec, scaling_factor=0.3, shift_factor=0.1))
    found = regularizer.scale(model)
    assert found is not None
    assert found.latents_std is None
    assert found.shift_factor == pytest.approx(float(values.mean()), abs=1e-6)
    assert found.scaling_factor == pytest.approx(1 / float(values.std()), rel=0.01)  # unbiased each


def test_chain_has_the_scale_and_the_buffers_of_its_parts() -> None:
    model = KLAutoencoder.example("AutoencoderKL")
    chain = Chain(regularizers=(GaussianNoise(), NormalizedLatents()))
    chain.prepare(model)
    assert chain.scale(model) is None
    chain.learn([DeterministicPosterior(latents(0))])
    scale = chain.scale(model)
    assert scale is not None
    assert scale.latents_mean is not None
    assert len(list(chain.learning_buffers())) == 3


def test_models_without_a_scale_and_invalid_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"expected momentum in \(0, 1\], got 0"):
        NormalizedLatents(momentum=0.0)
    with pytest.raises(UserError, match="expected eps of at least 0, got -1"):
        NormalizedLatents(eps=-1.0)
    monkeypatch.setattr(KLAutoencoder, "scale_keys", ())
    with pytest.raises(UserError, match="AutoencoderKL stores no scale of its own"):
        prepared()
