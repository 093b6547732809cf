"""What is particular to one network class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

import ldm_ae
from ldm_ae.core.errors import UserError
from ldm_ae.interop import export_diffusers, measure_scaling
from ldm_ae.interop.scaling import plan_scaling, settle_scaling
from ldm_ae.models import ChannelStatistics, load_autoencoder
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.adapters.asymmetric import AsymmetricAutoencoder
from ldm_ae.models.adapters.dc import DCAutoencoder
from ldm_ae.models.adapters.flux2 import Flux2Autoencoder
from ldm_ae.models.adapters.hunyuan_image import HunyuanImageAutoencoder
from ldm_ae.models.adapters.rae import RAEAutoencoder
from ldm_ae.models.adapters.tiny import TinyAutoencoder
from ldm_ae.models.scaling import check_storable, describe_state, measured_scaling, scale_is_known
from tests.models.examples import images, skip_if_missing

SIGLIP_IS_BUILT = hasattr(
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(num_hidden_layers=0)), "vision_model"
)
TINY_WIDTHS = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (Flux2Autoencoder, {"block_out_channels": (32, 48)}, "48 is not divisible by norm_num_groups=32"),
    (Flux2Autoencoder, {"decoder_block_out_channels": (32,)}, "the encoder has 4 levels and the decoder 1"),
    (AsymmetricAutoencoder, {"up_block_out_channels": (32, 32)}, "the encoder has 4 levels and the decoder 2"),
    (DCAutoencoder, {"encoder_layers_per_block": (1, 1)}, "encoder_layers_per_block: expected 6 numbers"),
    (DCAutoencoder, {"decoder_layers_per_block": (1, 1, 0, 1, 1, 1)}, "only the first may be 0"),
    (DCAutoencoder, {"attention_levels": (6,)}, "attention_levels: expected levels from 0 to 5, got 6"),
    (DCAutoencoder, {"attention_head_dim": 48}, "512 is not divisible by attention_head_dim=48"),
    (DCAutoencoder, {"latent_channels": 48}, "1024 is not divisible by latent_channels=48"),
    (TinyAutoencoder, {"encoder_block_out_channels": (4, 8, 4, 4)}, "the class needs equal widths"),
    (TinyAutoencoder, {"num_decoder_blocks": (1,)}, "num_decoder_blocks: expected 4 numbers"),
    (HunyuanImageAutoencoder, {"block_out_channels": (32, 48)}, "48 is not divisible by 32"),
    (HunyuanImageAutoencoder, {"latent_channels": 48}, r"not divisible by 2 \* latent_channels"),
    (
        HunyuanImageAutoencoder, {"block_out_channels": (32, 192), "latent_channels": 32},
        r"the wider must divide 4 times the other, got \(32, 192\)",
    ),
    (RAEAutoencoder, {"encoder_hidden_size": 100}, "encoder_hidden_size: expected a multiple of 64, got 100"),
    (RAEAutoencoder, {"encoder_input_size": 100}, "encoder_input_size: expected a multiple of 14"),
    (RAEAutoencoder, {"decoder_hidden_size": 100}, "decoder_hidden_size: expected a multiple of 16"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "arguments", "words"), REFUSED)
def test_arguments_that_the_class_cannot_build_are_refused(
    cls: type[Any], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        cls(**arguments)


def test_folders_whose_configuration_is_not_supported_are_refused(tmp_path: Path) -> None:
    networks = {
        "patch_size is 2x1": diffusers.AutoencoderKLFlux2(
            **Flux2Autoencoder.example("").net.config | {"patch_size": (2, 1)}
        ),
        "the encoder divides the sides by 2, and the decoder multiplies them by 4": diffusers.AutoencoderTiny(
            **TINY_WIDTHS, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), upsampling_scaling_factor=4
        ),
        "reshape_to_2d is false": diffusers.AutoencoderRAE(
            **RAEAutoencoder.example("").net.config | {"reshape_to_2d": False}
        ),
    }  # fmt: skip
    for number, (words, network) in enumerate(networks.items()):
        skip_if_missing(type(network).__name__)  # the last one
        network.save_pretrained(tmp_path / str(number))
        with pytest.raises(UserError, match=rf"{number}/config.json: .*{words}"):
            load_autoencoder(tmp_path / str(number))
        with pytest.raises(UserError, match=words):
            ldm_ae.wrap(network)


# ------------------------------------------------------------------------------------------------------------- FLUX.2


def test_flux2_measures_each_packed_channel() -> None:
    model = Flux2Autoencoder.example("").eval()
    assert describe_state(model) == "not measured"
    assert not scale_is_known(model)
    statistics = ChannelStatistics(16)
    values = torch.randn(64, 16, 4, 4) * torch.arange(1.0, 17).view(1, 16, 1, 1) + torch.arange(16.0).view(1, 16, 1, 1)
    statistics.update(values)
    spec = measured_scaling(model.latent_spec, statistics)
    model.set_scaling(scaling_factor=1.0, latents_mean=spec.latents_mean, latents_std=spec.latents_std)
    assert describe_state(model) == "measured"
    found = model.scale(model.latent_spec.unpack(values))
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=(0, 2, 3), unbiased=False), torch.ones(16), atol=1e-5, rtol=0)


def test_statistics_of_latents_that_are_not_packed_are_refused() -> None:
    statistics = ChannelStatistics(4)
    statistics.update(torch.randn(2, 4, 4, 4))
    with pytest.raises(UserError, match="the statistics are of 4 channels; expected 16 of packed latents"):
        measured_scaling(Flux2Autoencoder.example("").latent_spec, statistics)


def test_flux2_refuses_a_deviation_that_its_batch_norm_cannot_hold() -> None:
    model = Flux2Autoencoder.example("")
    with pytest.raises(UserError, match=r"cannot store latents_std 0.001: .* leaves room for is 0.01"):
        model.set_scaling(scaling_factor=1.0, latents_mean=(0.0,) * 16, latents_std=(0.001,) + (1.0,) * 15)


def test_flux2_without_vectors_has_the_scale_1() -> None:
    model = Flux2Autoencoder.example("")
    model.set_scaling(scaling_factor=1.0, latents_mean=(3.0,) * 16, latents_std=(2.0,) * 16)
    model.set_scaling(scaling_factor=1.0)
    latents = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(model.unscale(model.latent_spec.pack(latents)), latents)


def test_flux2_keeps_its_scale_exact_in_weights_of_half_precision(tmp_path: Path) -> None:
    model = Flux2Autoencoder.example("")
    model.set_scaling(scaling_factor=1.0, latents_mean=(0.1234567,) * 16, latents_std=(1.2345678,) * 16)
    out = export_diffusers(model, tmp_path / "out", weights=torch.bfloat16)
    assert load_autoencoder(out).latent_spec == model.latent_spec


def test_flux2_small_decoder_keeps_encoder_and_latents() -> None:
    model = Flux2Autoencoder.example("")
    assert model.net.config.decoder_block_out_channels == (2, 4)
    assert model.net.decoder.conv_out.weight.shape[1] == 2
    assert model.net.encoder.conv_in.weight.shape[0] == 4


# ------------------------------------------------------------------------------------------------- DC, tiny and others


@pytest.mark.parametrize("layers", [1, 0])
def test_dc_last_layer_is_a_convolution_also_where_it_enlarges(layers: int) -> None:
    model = DCAutoencoder(
        block_out_channels=(8, 8, 16), encoder_layers_per_block=(layers, 1, 1), latent_channels=4,
        decoder_layers_per_block=(layers, 1, 1), attention_levels=(), downsample_block_type="conv",
    ).eval()  # fmt: skip
    reconstructions = model(images(model)).reconstructions
    assert reconstructions.shape == (2, 3, 8, 16)
    (gradient,) = torch.autograd.grad(reconstructions.square().sum(), model.last_layer)
    assert gradient.abs().max() > 0
    assert all(len(part) for part in model.compilable_parts(for_training=True)[1:])


def test_tiny_takes_pixels_from_minus_one_to_one() -> None:
    model = TinyAutoencoder.example("").eval()
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).mode(), model.net.encoder.layers((x + 1) / 2))
        latents = model.encode(x).mode()
        clamped = torch.tanh(latents / 3) * 3
        torch.testing.assert_close(model.decode(latents), model.net.decoder.layers(clamped) * 2 - 1)


def test_networks_own_tiling_and_slicing_are_not_used() -> None:
    for cls in (TinyAutoencoder, Flux2Autoencoder, DCAutoencoder, HunyuanImageAutoencoder):
        model = cls.example("").eval()
        x = images(model)
        with torch.no_grad():
            expected = model.encode(x).mode()
            model.net.enable_tiling()
            model.net.enable_slicing()
            assert torch.equal(model.encode(x).mode(), expected), cls
            assert torch.equal(model.decode(expected), cls.around(model.net).decode(expected)), cls


def test_hunyuan_image_without_a_factor_is_not_scaled() -> None:
    config = HunyuanImageAutoencoder.example("").net.config
    network = diffusers.AutoencoderKLHunyuanImage(**{**config, "scaling_factor": None})
    assert ldm_ae.wrap(network).latent_spec.scaling_factor == 1.0


@pytest.mark.parametrize("name", ["AutoencoderDC", "AutoencoderTiny", "AutoencoderKLHunyuanImage"])
def test_vectors_are_refused_before_anything_is_measured(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} cannot store latents_mean and latents_std; remove --per-channel"):
        plan_scaling(AUTOENCODERS[name].example(name), "auto", per_channel=True, images=True)


def test_a_class_of_vectors_refuses_a_single_factor() -> None:
    with pytest.raises(UserError, match="stores latents_mean and latents_std alone; remove --no-per-channel"):
        check_storable(Flux2Autoencoder.example(""), False)


# ---------------------------------------------------------------------------------------------------------------- RAE


def rae(**more: Any) -> diffusers.AutoencoderRAE:
    config = {key: value for key, value in RAEAutoencoder.example("").net.config.items() if key[0] != "_"}
    return diffusers.AutoencoderRAE(**(config | more))


def test_rae_normalizes_within_the_network(tmp_path: Path) -> None:
    skip_if_missing("AutoencoderRAE")
    mean, std = torch.randn(64, 1, 1), torch.rand(64, 1, 1) + 0.5
    network = rae(latents_mean=mean, latents_std=std, scaling_factor=2.0).eval()
    network.save_pretrained(tmp_path)
    model = load_autoencoder(tmp_path)
    x = images(model)
    tokens = network.encoder(network._resize_and_normalize((x + 1) / 2)).last_hidden_state[:, 5:]
    expected = (tokens.transpose(1, 2).reshape(2, 64, 4, 4) - mean) / (std + 1e-5) * 2.0
    latents = model.encode(x).mode()
    torch.testing.assert_close(latents, expected)
    assert torch.equal(model.scale(latents), latents)
    assert settle_scaling(model, None) == (
        "AutoencoderRAE stores no scale of its own, and none is measured", True
    )  # fmt: skip
    assert ldm_ae.models.model_hash(model) != ldm_ae.models.model_hash(ldm_ae.wrap(rae(scaling_factor=2.0)))


def test_saved_rae_names_the_transformers_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RAEAutoencoder.example("").save_pretrained(tmp_path)
    monkeypatch.setattr("ldm_ae.models.adapters.rae.version", lambda name: "4.57.3")
    with pytest.raises(UserError, match=r"needs transformers 5 or newer, and 4\.57\.3 is installed"):
        load_autoencoder(tmp_path)


def test_rae_has_no_noise_and_a_fixed_encoder_in_training() -> None:
    model = ldm_ae.wrap(rae(noise_tau=0.8)).train()
    assert model.net.decoder.training
    assert not any(module.training for module in model.net.encoder.modules())
    x = images(model)
    assert torch.equal(model.encode(x).mode(), model.encode(x).mode())
    assert model.net.noise_tau == 0.8  # the network keeps it for others


def test_rae_starts_from_the_weights_of_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = Dinov2WithRegistersConfig(
        hidden_size=64, patch_size=4, image_size=518, num_attention_heads=1, num_hidden_layers=1
    )
    encoder = Dinov2WithRegistersModel(config)
    encoder.save_pretrained(tmp_path / "encoder")
    sizes: dict[str, Any] = {
        "encoder_hidden_size": 64, "encoder_patch_size": 4, "encoder_num_hidden_layers": 1, "encoder_input_size": 16,
        "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16, "patch_size": 4,
    }  # fmt: skip
    model = RAEAutoencoder(encoder=str(tmp_path / "encoder"), **sizes)
    for key, value in model.net.encoder.named_parameters():
        assert torch.equal(value, encoder.get_parameter(key)), key
        assert not value.requires_grad
    with pytest.raises(UserError, match=r"encoder: .* cannot be loaded as Dinov2WithRegistersModel"):
        RAEAutoencoder(encoder=str(tmp_path / "encoder"), **(sizes | {"encoder_hidden_size": 128}))
    with pytest.raises(UserError, match=r"encoder: .*nothing cannot be loaded"):
        RAEAutoencoder(encoder=str(tmp_path / "nothing"), **sizes)


def test_rae_takes_images_and_latents_of_one_size() -> None:
    model = RAEAutoencoder.example("").eval()
    assert model.sample_size == 16
    with pytest.raises(UserError, match="takes images of 16x16 only, got height x width 32x16"):
        model.encode(torch.zeros(1, 3, 32, 16))
    with pytest.raises(UserError, match=r"latents must be \(B, 64, 4, 4\), those of images of the model's only size"):
        model.decode(torch.zeros(1, 64, 4, 8))


def test_siglip_is_refused_where_diffusers_cannot_build_it(tmp_path: Path) -> None:
    if SIGLIP_IS_BUILT:
        pytest.skip("the installed diffusers builds it")
    with pytest.raises(UserError, match=r"siglip2: diffusers .* pip install 'transformers<5'"):
        RAEAutoencoder(encoder_type="siglip2")
    rae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"encoder_type": "siglip2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"siglip2: diffusers .* pip install 'transformers<5'"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("kind", ["siglip2", "mae"])
def test_rae_with_other_encoders(kind: str) -> None:
    if kind == "siglip2" and not SIGLIP_IS_BUILT:
        pytest.skip("diffusers cannot build this encoder with the installed transformers")
    network = rae(encoder_type=kind)
    model = ldm_ae.wrap(network).eval()
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).mode(), network.encode((x + 1) / 2).latent)
        assert model.decode(model.encode(x).mode()).shape == x.shape


def test_measuring_without_a_place_for_the_scale_is_refused() -> None:
    with pytest.raises(UserError, match="AutoencoderRAE stores no scale of its own"):
        check_storable(RAEAutoencoder.example(""), None)
    statistics = measure_scaling(RAEAutoencoder.example("").eval(), [])
    assert statistics.count == 0
