"""Models of images other than RGB: their record in config.json, and the start from RGB weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.models import KLAutoencoder, VQAutoencoder, load_autoencoder, model_hash
from ldm_ae.models.interface import Autoencoder
from ldm_ae.quantizers import FSQ, VQ

SMALL: dict[str, Any] = {
    "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False,
}  # fmt: skip
GREY16 = {"meaning": "grey", "bits": 16, "high": 4095}


@pytest.fixture(scope="module")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> tuple[KLAutoencoder, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("rgb")
    model = KLAutoencoder(**SMALL).eval()
    model.save_pretrained(folder)
    return model, folder


def reconstruct(model: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.decode(model.encode(images).mode())


def images(channels: int) -> torch.Tensor:
    return torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_config_of_rgb_model_is_as_before(rgb: tuple[KLAutoencoder, Path]) -> None:
    model, folder = rgb
    written = json.loads((folder / "config.json").read_text())
    assert "_pixels" not in written
    assert model.pixel_spec == RGB
    assert model_hash(KLAutoencoder(pretrained=str(folder), pixels="rgb")) == model_hash(model)


@pytest.mark.parametrize("pixels", ["grey", "rgba", GREY16, {"channels": 5, "bits": 0, "missing": "nan"}])
def test_pixels_travel_in_the_model_folder_that_diffusers_opens(pixels: Any, tmp_path: Path) -> None:
    model = KLAutoencoder(pixels=pixels, **SMALL)
    model.save_pretrained(tmp_path)
    spec = PixelSpec.from_json(pixels)
    assert model.pixel_spec == load_autoencoder(tmp_path).pixel_spec == spec
    net = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert (net.config.in_channels, net.config.out_channels) == (spec.channels, spec.channels)
    assert reconstruct(model, images(spec.channels)).shape == (2, spec.channels, 16, 16)


@pytest.mark.parametrize("quantizer", [VQ(8, 4), FSQ((4, 4, 3))])
def test_discrete_models_take_pixels_too(quantizer: Any, tmp_path: Path) -> None:
    model = VQAutoencoder(quantizer=quantizer, pixels="rgba", **SMALL)
    model.save_pretrained(tmp_path)
    opened = load_autoencoder(tmp_path)
    assert opened.pixel_spec == RGBA
    grey = VQAutoencoder(pretrained=str(tmp_path), pixels="grey")
    assert (grey.pixel_spec, reconstruct(grey, images(1)).shape) == (GREY, (2, 1, 16, 16))


def test_rgba_model_with_opaque_alpha_equals_the_rgb_model(rgb: tuple[KLAutoencoder, Path]) -> None:
    colours = images(3)
    model = KLAutoencoder(pretrained=str(rgb[1]), pixels="rgba").eval()
    for alpha in (1.0, -1.0):
        found = reconstruct(model, torch.cat([colours, torch.full((2, 1, 16, 16), alpha)], dim=1))
        assert torch.allclose(found[:, :3], reconstruct(rgb[0], colours), atol=1e-5)
        assert (found[:, 3] == 1.0).all()


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_unnamed_channels_equal_the_rgb_model_of_the_repeated_image(
    rgb: tuple[KLAutoencoder, Path], channels: int
) -> None:
    pixels = "grey" if channels == 1 else {"channels": channels}
    model = KLAutoencoder(pretrained=str(rgb[1]), pixels=pixels).eval()
    grey = images(1)
    expected = reconstruct(rgb[0], grey.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    found = reconstruct(model, grey.expand(-1, channels, -1, -1))
    assert torch.allclose(found, expected.expand_as(found), atol=1e-5)


def test_bands_named_as_colours_start_from_these_colours(rgb: tuple[KLAutoencoder, Path]) -> None:
    pixels = {"names": ["blue", "green", "red", "near infrared"], "channels": 4, "bits": 16}
    model = KLAutoencoder(pretrained=str(rgb[1]), pixels=pixels).eval()
    values = images(4)
    expected = reconstruct(rgb[0], values[:, [2, 1, 0]])
    found = reconstruct(model, values)
    assert torch.allclose(found[:, [2, 1, 0]], expected, atol=1e-5)
    assert torch.allclose(found[:, 3], expected.mean(1), atol=1e-5)


def test_network_without_a_record_takes_its_meaning_from_the_recipe(tmp_path: Path) -> None:
    net = diffusers.AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    net.save_pretrained(tmp_path)
    model = KLAutoencoder(pretrained=str(tmp_path), pixels=GREY16)
    assert model.pixel_spec == PixelSpec.from_json(GREY16)
    assert torch.equal(model.net.encoder.conv_in.weight, net.encoder.conv_in.weight)


def test_record_that_contradicts_the_channels_is_refused_with_both(tmp_path: Path) -> None:
    KLAutoencoder(pixels="grey", **SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["_pixels"] = {"meaning": "rgba"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"_pixels is rgba \(4 channels .*, but in_channels is 1") as error:
        load_autoencoder(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("pixels", ["grey", "rgba"])
def test_thumbnail_start_carries_every_channel(pixels: str) -> None:
    torch.manual_seed(0)
    widths = {**SMALL, "block_out_channels": (16, 16), "norm_num_groups": 2}
    model = KLAutoencoder(pixels=pixels, initialization="thumbnail", **widths).eval()
    smooth = torch.nn.functional.interpolate(images(model.pixel_spec.channels), 64, mode="bicubic")[..., 8:-8, 8:-8]
    error = (reconstruct(model, smooth) - smooth).square().mean()
    assert error < 0.1 * smooth.var()
