"""What every network class must do; one that lies in `ldm_ae/models/adapters` is here by itself."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import classes_of, modules_by_name
from ldm_ae.images.pixels import MEANINGS
from ldm_ae.interop import export_diffusers, measure_scaling
from ldm_ae.interop.scaling import plan_scaling
from ldm_ae.models import (
    Autoencoder,
    Posterior,
    Tiled,
    for_inference,
    fp32_fallbacks,
    load_autoencoder,
    model_hash,
    network_config,
)
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.scaling import SCALE, encoder_sha256, mark_scaled_encoder, measured_scaling, set_scaling_of
from ldm_ae.models.trainable import set_trainable
from tests.models.examples import SLOW_VIDEO, images, latent_size, noise_of, skip_if_missing, some_scale
from tests.models.patch_linear import PatchLinearAutoencoder

DOUBLE = "PatchLinear"
"""Of another package: fixture `patch_linear`."""


@pytest.fixture(params=[*(name for name in AUTOENCODERS if name not in SLOW_VIDEO), DOUBLE,
                        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_VIDEO)])  # fmt: skip
def name(request: pytest.FixtureRequest, patch_linear: None) -> str:
    skip_if_missing(request.param)
    return request.param


@pytest.fixture
def model(name: str) -> Autoencoder:
    return AUTOENCODERS[name].example(name).eval()


def named_parameters(model: Autoencoder, *, decoder: bool) -> dict[str, nn.Parameter]:
    found = dict(model.net.named_parameters())
    return {name: value for name, value in found.items() if name.startswith(model.decoder_names) == decoder}


def all_of(posterior: Posterior) -> list[Tensor]:
    found = [posterior.mode(), posterior.moments, posterior.indices]
    return [tensor for tensor in found if tensor is not None]


def test_every_network_class_declares_the_class_names_it_opens() -> None:
    for module in modules_by_name("ldm_ae.models.adapters").values():
        for cls in classes_of(__import__(module, fromlist=["_"]), Autoencoder):  # type: ignore[type-abstract]
            assert cls.class_names, cls
            assert all(AUTOENCODERS[name] is cls for name in cls.class_names)


def test_saved_model_is_opened_by_its_class_name(name: str, model: Autoencoder, tmp_path: Path) -> None:
    assert type(model.net).__name__ == name
    model.save_pretrained(tmp_path / "saved")
    opened = load_autoencoder(tmp_path / "saved")
    assert type(opened) is AUTOENCODERS[name]
    assert opened.spec == model.spec
    assert model_hash(opened) == model_hash(model)
    x = images(model)
    for found, expected in zip(all_of(opened.encode(x)), all_of(model.encode(x)), strict=True):
        torch.testing.assert_close(found, expected)  # attention over weights at other addresses differs in the last bit
    model.save_config(tmp_path / "config")
    assert (tmp_path / "config" / "config.json").read_text() == (tmp_path / "saved" / "config.json").read_text()


def test_a_network_in_memory_is_wrapped_with_its_parameters(name: str, model: Autoencoder) -> None:
    wrapped = AUTOENCODERS[name].around(model.net)
    assert type(wrapped) is AUTOENCODERS[name]
    assert wrapped.spec == model.spec
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in model.parameters()}
    x = images(model)
    for found, expected in zip(all_of(wrapped.encode(x)), all_of(model.encode(x)), strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_images_and_latents_that_do_not_fit_are_refused(model: Autoencoder) -> None:
    x = images(model)
    latents = model.encode(x).mode()
    for pixel_values in (x.to(torch.uint8), x * 100, x * torch.nan, x[:, :, 1:], x[0], x.to("meta")):
        with pytest.raises(UserError):
            model.encode(pixel_values)
    for bad in (latents.long(), latents[0], latents[:, 1:], latents.to("meta")):
        with pytest.raises(UserError):
            model.decode(bad)
    assert torch.equal(model.encode_images(x), latents.float())
    assert len(model.decode_to_pil(latents)) == 2


@torch.no_grad()
def test_latent_and_image_shapes_match_the_spec(model: Autoencoder) -> None:
    spec, x = model.spec, images(model)
    assert spec.pixels.require_supported("the model").meaning in MEANINGS
    assert (model.latent_spec, model.pixel_spec) == (spec.latents, spec.pixels)
    posterior = model.encode(x)
    latents = posterior.mode()
    assert latents.shape == (2, spec.latents.channels, *latent_size(model))
    assert (latents.dtype, posterior.sample(noise=noise_of(model)).shape) == (torch.float32, latents.shape)
    reconstructions = model.decode(latents)
    assert (reconstructions.shape, reconstructions.dtype) == (x.shape, torch.float32)
    for term in (*posterior.regularization().values(), posterior.rate()):
        assert term is None or (term.shape == (2,) and term.isfinite().all())
    output = model(x, noise_of(model))
    assert output.reconstructions.shape == x.shape


def test_wrong_shapes_are_refused_by_name(model: Autoencoder) -> None:
    x, channels = images(model), model.latent_spec.channels
    with pytest.raises(UserError, match=rf"pixel_values must be \(B, {x.shape[1]}, H, W\), got"):
        model.encode(x[:, :1])
    with pytest.raises(UserError, match=rf"latents must be \(B, {channels}, h, w\), got"):
        model.decode(torch.zeros(1, channels + 1, 2, 2))
    if model.latent_spec.downsample_factor > 1:
        with pytest.raises(UserError, match=r"not divisible by the model's downsample factor|takes images of .* only"):
            model.encode(x[..., 1:])


@torch.no_grad()
def test_posteriors_have_the_declared_members(model: Autoencoder) -> None:
    posterior, spec = model.encode(images(model)), model.latent_spec
    assert (posterior.moments is not None) == model.has_moments
    assert (posterior.indices is not None) == (model.codebook is not None) == (spec.codebook_size is not None)
    if posterior.moments is not None:
        assert posterior.moments.shape == (2, 2 * spec.channels, *latent_size(model))
        assert torch.equal(posterior.moments[:, : spec.channels], posterior.mode())
    if posterior.indices is not None:
        codebook = model.codebook
        assert codebook is not None
        assert (codebook.size, codebook.levels) == (spec.codebook_size, spec.codebook_levels)
        assert torch.equal(codebook.latents(posterior.indices.int()), posterior.mode())
        with pytest.raises(UserError, match=r"indices must be in \[0, "):
            codebook.latents(posterior.indices + codebook.size)
        with pytest.raises(UserError, match="indices must be"):
            codebook.latents(posterior.indices[0, 0])


def test_scale_is_recorded_where_the_class_supports_it(model: Autoencoder, tmp_path: Path) -> None:
    channels = model.latent_spec.scaled_channels
    values = {"scaling_factor": 0.25, "shift_factor": 0.5, "latents_mean": (0.5,) * channels,
              "latents_std": (2.0,) * channels}  # fmt: skip
    assert tuple(values) == SCALE
    assert {*model.scale_keys} <= {*SCALE}
    before = model_hash(model)
    # Vectors come in pairs.
    alone = {"scaling_factor": 1.0} | {key: values[key] for key in SCALE[2:] if key in model.scale_keys}
    for key, value in values.items():
        if key in model.scale_keys:
            model.set_scaling(**(alone | {key: value}))  # type: ignore[arg-type]
            model.save_pretrained(tmp_path / key)
            found = getattr(load_autoencoder(tmp_path / key).latent_spec, key)
            assert found == pytest.approx(value, rel=1e-6)  # a class may store vectors in float32
        else:
            with pytest.raises(UserError, match=f"{type(model.net).__name__} cannot store {key}"):
                model.set_scaling(**(alone | {key: value}))  # type: ignore[arg-type]
    assert model_hash(model) == before
    latents = torch.randn(2, model.latent_spec.channels, 4, 6)
    scaled = model.scale(latents)
    patch = model.latent_spec.patch_size
    assert scaled.shape == (2, channels, 4 // patch, 6 // patch)
    assert torch.allclose(model.unscale(scaled), latents, atol=1e-6)
    if patch > 1:
        with pytest.raises(UserError, match="cannot be packed"):
            model.scale(latents[..., 1:])
    with pytest.raises(UserError, match="scaled_latents must be"):
        model.unscale(scaled[:, 1:])


@torch.no_grad()
def test_scale_is_measured_in_the_form_that_the_class_stores(model: Autoencoder) -> None:
    spec = model.latent_spec
    batches = [
        SimpleNamespace(pixel_values=images(model, 8), seeds=torch.arange(8), keys=list("abcdefgh")) for _ in range(2)
    ]
    statistics = measure_scaling(model, batches)  # type: ignore[arg-type]
    if not model.scale_keys:
        with pytest.raises(UserError, match="stores no scale of its own"):
            plan_scaling(model, "measure", per_channel=None, images=True)
        return
    set_scaling_of(model, measured_scaling(spec, statistics))
    assert model.latent_spec.patch_size == spec.patch_size
    scaled = torch.cat([model.scale(model.encode(batch.pixel_values).sample()) for batch in batches])
    if not model.has_moments:  # the same latents, so that the scale is exact
        assert float(scaled.std(unbiased=False)) == pytest.approx(1.0, rel=1e-3)
    assert model.latent_spec.scaling_factor == 1.0 or model.latent_spec.latents_std is None


def test_sample_size_is_recorded_outside_the_network_hash(model: Autoencoder, tmp_path: Path) -> None:
    before = network_config(model)
    assert model.sample_size > 0
    only = model.latent_spec.image_size
    if only is not None:
        with pytest.raises(UserError, match="only"):
            model.set_sample_size(96)
    model.set_sample_size(size := only or 96)
    model.save_pretrained(tmp_path)
    assert (model.sample_size, load_autoencoder(tmp_path).sample_size) == (size, size)
    assert network_config(model) == before


@torch.no_grad()
def test_latents_do_not_depend_on_the_decoders_parameters(model: Autoencoder) -> None:
    x = images(model)
    expected, encoder = model.encode(x).mode(), encoder_sha256(model)
    decoder = named_parameters(model, decoder=True)
    for parameter in decoder.values():
        parameter.add_(1.0)
    assert torch.equal(model.encode(x).mode(), expected)
    assert encoder_sha256(model) == encoder
    for parameter in named_parameters(model, decoder=False).values():
        before = parameter.clone()
        parameter.add_(1.0)
        assert encoder_sha256(model) != encoder
        parameter.copy_(before)


def test_last_layer_is_the_decoders_output_layer(model: Autoencoder) -> None:
    """It is a parameter of the decoder, and the reconstructions give it a gradient."""
    last = model.last_layer
    if last is None:
        pytest.skip("the class declares no last layer")
    assert any(last is parameter for parameter in named_parameters(model, decoder=True).values())
    reconstructions = model.decode(model.encode(images(model)).mode())
    (gradient,) = torch.autograd.grad(reconstructions.square().sum(), last)
    assert gradient.abs().max() > 0


def test_encoder_last_layer_is_followed_by_no_other_layer_of_the_encoder(model: Autoencoder) -> None:
    """It is the encoder's last weight, outside convolutions of 1x1, and the latents give it a gradient."""
    last = model.encoder_last_layer
    if last is None:
        pytest.skip("the class declares no last layer of the encoder, or never trains it")
    encoder = model.encoder_parameters()
    assert any(last is parameter for parameter in encoder.values())
    inside = [p for name, p in encoder.items() if name.startswith("encoder.") and p.ndim > 1]
    assert last is inside[-1]
    latents = model.train().encode(images(model)).mode()
    (gradient,) = torch.autograd.grad(latents.square().sum(), last)
    assert gradient.abs().max() > 0


def test_gradient_checkpointing_preserves_gradients(model: Autoencoder) -> None:
    if not model.has_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            model.enable_gradient_checkpointing()
        return
    x, noise, other = images(model), noise_of(model), copy.deepcopy(model)
    other.enable_gradient_checkpointing()
    found = []
    for each in (model, other):
        each.train()(x, noise).reconstructions.square().sum().backward()
        found.append({name: p.grad for name, p in each.net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][key], rtol=1e-4, atol=1e-5), key


def test_compilable_parts_exclude_the_last_layer_in_training(model: Autoencoder) -> None:
    modules = list(model.net.modules())
    for for_training in (False, True):
        parts = model.compilable_parts(for_training=for_training)
        assert all(any(part is module for module in modules) for part in parts)
        if for_training:
            inside = [parameter for part in parts for parameter in part.parameters()]
            assert not any(parameter is model.last_layer for parameter in inside)
    if not model.compilable_parts():
        with pytest.raises(UserError, match="declares no parts to compile"):
            for_inference(model, device="cpu", compiled=True)


@torch.no_grad()
def test_device_and_dtype_are_those_of_the_weights(model: Autoencoder) -> None:
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    x = images(model)
    expected = model.decode(model.encode(x).mode())
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        ready = for_inference(copy.deepcopy(model), device="cpu", precision=precision)
        assert ready.dtype == dtype
        found = ready.decode(ready.encode(x).mode())
        assert (found.dtype, found.shape) == (torch.float32, expected.shape)
        if precision == "fp32":
            assert torch.allclose(found, expected, atol=1e-5)
    assert copy.deepcopy(model).to("meta").device == torch.device("meta")


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:fp16 overflowed")
def test_fp16_overflow_is_computed_again_in_fp32(model: Autoencoder) -> None:
    """A weight of 1e6 is infinite in fp16, in the encoder's first layer and in the decoder's last."""
    x = images(model)
    for part, decoder in (("encoder", False), ("decoder", True)):
        large = copy.deepcopy(model)
        weights = [p for p in named_parameters(large, decoder=decoder).values() if p.ndim > 1]
        (weights[0] if part == "encoder" else large.last_layer if large.last_layer is not None else weights[-1]).fill_(
            1e6
        )
        latents = model.encode(x).mode()
        expected = large.encode(x).mode() if part == "encoder" else large.decode(latents)
        assert expected.isfinite().all()
        ready = for_inference(large, device="cpu", precision="fp16")
        found = ready.encode(x).mode() if part == "encoder" else ready.decode(latents)
        assert fp32_fallbacks(ready) == 1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_training_never_changes_what_the_class_keeps_frozen(model: Autoencoder) -> None:
    set_trainable(model, ["*"])
    for key, parameter in model.net.named_parameters():
        assert parameter.requires_grad != key.startswith(model.frozen_names), key
    for prefix in model.frozen_names:
        with pytest.raises(UserError, match=r"matches only parameters that are never trained"):
            set_trainable(model, [f"{prefix}*"])


def test_every_parameter_receives_a_gradient_in_a_training_pass(model: Autoencoder) -> None:
    output = model.train()(images(model), noise_of(model))
    terms = output.posterior.regularization()
    assert model.needed_terms() <= terms.keys()
    (output.reconstructions.square().sum() + sum(term.sum() for term in terms.values())).backward()
    for key, parameter in model.net.named_parameters():
        if key.startswith(model.frozen_names):
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert all(torch.is_tensor(value) for value in model.learn([output.posterior]).values())
    assert all(torch.is_tensor(value) for value in model.learned_parameters())


@torch.no_grad()
def test_tiles_of_large_images_are_blended_or_exact(model: Autoencoder) -> None:
    spec, factor = model.spec, model.latent_spec.downsample_factor
    low, high = spec.pixels.range
    if (side := spec.latents.image_size) is not None:
        with pytest.raises(UserError, match=f"{type(model.net).__name__} takes images of {side}x{side} pixels only"):
            Tiled(model, tile=factor)
        return
    x = torch.rand(2, spec.pixels.channels, 5 * factor, 3 * factor) * (high - low) + low
    whole = model.encode(x)
    images = model.decode(whole.mode())
    if model.exact_parts():
        tiled = Tiled(model, tile=factor)
        assert tiled.exact
        assert all(any(part is module for module in model.net.modules()) for part in model.exact_parts())
        for found, expected in zip(all_of(tiled.encode(x)), all_of(whole), strict=True):
            assert torch.allclose(found, expected, atol=1e-4)
        assert torch.allclose(tiled.decode(whole.mode()), images, atol=1e-4)
    tiled = Tiled(model, tile=2 * factor, overlap=factor, exact=False)
    found = tiled.encode(x)
    assert [tensor.shape for tensor in all_of(found)] == [tensor.shape for tensor in all_of(whole)]
    assert (found.moments is None, found.indices is None) == (whole.moments is None, whole.indices is None)
    decoded = tiled.decode(whole.mode())
    assert (decoded.shape, decoded.dtype) == (images.shape, torch.float32)
    assert decoded.isfinite().all()
    # A tile that is the whole image is the whole image.
    wide = Tiled(model, tile=5 * factor, exact=False)
    assert torch.equal(wide.encode(x).mode(), whole.mode())


def test_exported_model_equals_the_original(model: Autoencoder, tmp_path: Path) -> None:
    model.set_scaling(**some_scale(model))
    mark_scaled_encoder(model)
    exported = load_autoencoder(export_diffusers(model, tmp_path / "out"))
    assert model_hash(exported) == model_hash(model)
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(
            exported.decode(exported.encode(x).mode()), model.decode(model.encode(x).mode())
        )  # attention over weights at other addresses differs in the last bit


def test_patch_linear_differs_from_a_convolutional_autoencoder(patch_linear: None) -> None:
    assert AUTOENCODERS[DOUBLE] is PatchLinearAutoencoder
    net = PatchLinearAutoencoder().net
    assert not hasattr(net, "decoder")
    assert "block_out_channels" not in net.config
