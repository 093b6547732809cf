"""A wrapper forwards the whole interface, later additions included, and overrides its own members."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm_ae.models import Autoencoder, KLAutoencoder, Posterior, Wrapper, for_inference, fp32_fallbacks, unwrapped
from ldm_ae.models.wrappers.interface import OWN, interface_members


class Plain(Wrapper):
    def __init__(self, model: Autoencoder):
        super().__init__(model)


class Halved(Wrapper):
    """An outline of a tiling wrapper, which overrides only encode and decode."""

    def __init__(self, model: Autoencoder):
        super().__init__(model)

    def encode(self, pixel_values: Tensor) -> Posterior:
        return super().encode(pixel_values / 2)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) * 2


class Recorder(nn.Module):
    """Every attribute is a value with the name of the attribute."""

    def __getattr__(self, name: str) -> object:
        return ("of the model", name)


def test_wrapper_forwards_every_member() -> None:
    """Members are enumerated, so that the test includes later additions to the interface."""
    wrapper = Plain(Recorder())  # type: ignore[arg-type]
    members = interface_members()
    assert {"net", "spec", "encode", "decode", "last_layer", "class_names", "set_scaling", "device"} <= members
    for name in members - OWN:
        assert getattr(wrapper, name) == ("of the model", name), name


def test_wrapper_inherits_only_members_built_on_forwarded_ones() -> None:
    assert interface_members() >= OWN == {"forward", "draw", "encode_images", "decode_to_pil"}


def test_interface_has_few_abstract_members() -> None:
    assert Autoencoder.__abstractmethods__ == {"spec", "encode", "decode"}
    assert Wrapper.__abstractmethods__ == {"__init__"}


def test_forward_uses_overridden_members(tiny_model: KLAutoencoder) -> None:
    model = tiny_model.eval()
    x, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.zeros(2, 4, 4, 4)
    expected = 2 * model.decode(model.encode(x / 2).mode())
    assert torch.equal(Halved(model)(x, noise).reconstructions, expected)
    assert torch.equal(Plain(model)(x, noise).reconstructions, model(x, noise).reconstructions)


def test_wrappers_can_be_nested(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.net.decoder.conv_in.weight *= 1e3
    inner = copy.deepcopy(tiny_model)
    guard = for_inference(tiny_model, device="cpu", precision="fp16")
    outer = Halved(guard)
    latents = 1e3 * torch.randn(1, 4, 4, 4)
    expected = 2 * for_inference(inner, device="cpu").decode(latents)
    assert torch.equal(outer.decode(latents), expected)
    assert (fp32_fallbacks(outer), fp32_fallbacks(guard), fp32_fallbacks(tiny_model)) == (1, 1, 0)
    assert unwrapped(outer) is tiny_model
    assert unwrapped(tiny_model) is tiny_model
    outer.set_scaling(scaling_factor=0.5)
    outer.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()
    assert outer.spec == tiny_model.spec
    assert tiny_model.latent_spec.scaling_factor == 0.5
    assert outer.dtype == torch.float16


def test_wrapper_base_class_is_abstract(tiny_model: KLAutoencoder) -> None:
    with pytest.raises(TypeError, match="abstract"):
        Wrapper(tiny_model)
