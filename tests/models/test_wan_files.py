"""Single files of Wan and Qwen-Image: the inferred configuration and the outputs equal those of the source network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.models.loading.single_file import open_single_file
from tests.interop.test_ldm_import import CLOSE, pixels, shaken
from tests.models.test_layout_outputs import State, as_list, saved

WAN: dict[str, Any] = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [False, True],
    "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "scale_factor_spatial": 4, "scale_factor_temporal": 2,
}  # fmt: skip
WAN_22 = WAN | {
    "dim_mult": [1, 2, 2], "decoder_base_dim": 8, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 8, "temperal_downsample": [True, True], "scale_factor_temporal": 4,
}  # fmt: skip
WAN_CHANGES = {"2.1": WAN, "two blocks": WAN | {"num_res_blocks": 2}, "2.2": WAN_22}
PARTS = (("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"), ("conv2", "residual.6"),
         ("conv_shortcut", "shortcut"))  # fmt: skip


def wan(name: str) -> Any:
    return shaken(diffusers.AutoencoderKLWan(**WAN_CHANGES[name]))


def wan_names(net: Any) -> State:
    """The weights under the names that Wan's modules give them, block by block."""
    found: State = {}

    def add(name: str, module: Any) -> None:
        for key, value in module.state_dict().items():
            found[f"{name}.{key}"] = value

    def add_block(name: str, block: Any) -> None:
        if not hasattr(block, "conv1"):  # a resampling or attention
            add(name, block)
            return
        for ours, theirs in PARTS:
            add(f"{name}.{theirs}", getattr(block, ours))

    add("conv1", net.quant_conv)
    add("conv2", net.post_quant_conv)
    for half in ("encoder", "decoder"):
        part = getattr(net, half)
        add(f"{half}.conv1", part.conv_in)
        for i, block in (
            (0, part.mid_block.resnets[0]),
            (1, part.mid_block.attentions[0]),
            (2, part.mid_block.resnets[1]),
        ):
            add_block(f"{half}.middle.{i}", block)
        add(f"{half}.head.0", part.norm_out)
        add(f"{half}.head.2", part.conv_out)
        levels, way = (part.down_blocks, "down") if half == "encoder" else (part.up_blocks, "up")
        number = 0
        for i, level in enumerate(levels):
            blocks = [*level.resnets] if hasattr(level, "resnets") else [level]
            samplers = getattr(level, f"{way}samplers", None) or [getattr(level, f"{way}sampler", None)]
            for j, block in enumerate([*blocks, *(sampler for sampler in samplers if sampler is not None)]):
                nested = f"{half}.{way}samples.{i}.{way}samples.{j}"
                add_block(nested if net.config.is_residual else f"{half}.{way}samples.{number}", block)
                number += 1
    return found


def check_wan(net: Any, path: Path, **options: Any) -> Autoencoder:
    """Assert that the file opens with the configuration of `net` and the outputs of its own functions for one frame."""
    found = load_autoencoder(path, **options)
    for key, value in net.config.items():
        if not key.startswith("_"):
            assert as_list(found.net.config[key]) == as_list(value), key
    x = pixels()
    with torch.no_grad():
        latents = net.encode(x[:, :, None]).latent_dist.mode()
        torch.testing.assert_close(found.encode(x).mode(), latents[:, :, 0], **CLOSE)
        # The class clamps reconstructions.
        torch.testing.assert_close(
            found.decode(latents[:, :, 0]).clamp(-1, 1), net.decode(latents).sample[:, :, 0], **CLOSE
        )
    return found


@pytest.mark.parametrize("name", WAN_CHANGES)
@pytest.mark.parametrize("prefix", ["", "vae.", "model."])
def test_wan_file_of_its_authors_opens(name: str, prefix: str, tmp_path: Path) -> None:
    net = wan(name)
    check_wan(net, saved(wan_names(net), tmp_path / "wan.safetensors", prefix))


@pytest.mark.parametrize("name", WAN_CHANGES)
def test_wan_weights_under_diffusers_keys_open(name: str, tmp_path: Path) -> None:
    net = wan(name)
    check_wan(net, saved(net.state_dict(), tmp_path / "wan.safetensors"))


def test_names_of_wan_agree_with_those_of_diffusers(tmp_path: Path) -> None:
    """diffusers' converter knows the names for two blocks per level."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    net = shaken(diffusers.AutoencoderKLWan(**WAN | {
        "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True],
        "scale_factor_spatial": 8, "scale_factor_temporal": 4,
    }))  # fmt: skip
    state = wan_names(net)
    assert convert_wan_vae_to_diffusers(state).keys() == net.state_dict().keys()
    check_wan(net, saved(state, tmp_path / "wan.safetensors"))


def test_qwen_image_opens_by_its_class(tmp_path: Path) -> None:
    """Its network is Wan's, so that the file alone is opened as Wan's, with equal outputs."""
    config = {key: value for key, value in WAN.items() if not key.startswith("scale_factor")}
    net = shaken(diffusers.AutoencoderKLQwenImage(**config))
    path = saved(net.state_dict(), tmp_path / "qwen.safetensors")
    found = check_wan(net, path, config={"_class_name": "AutoencoderKLQwenImage"})
    assert type(found.net).__name__ == "AutoencoderKLQwenImage"
    other = load_autoencoder(path)
    assert type(other.net).__name__ == "AutoencoderKLWan"
    with torch.no_grad():
        x = pixels()
        torch.testing.assert_close(other.encode(x).moments, found.encode(x).moments, **CLOSE)
    assert "Qwen-Image's is the same network" in open_single_file(path).lines()[0]


@pytest.mark.parametrize(("channels", "mean"), [(16, -0.7571), (48, -0.2289)])
def test_published_vectors_of_wan_are_known(channels: int, mean: float, tmp_path: Path) -> None:
    changes = {"z_dim": channels, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    net = diffusers.AutoencoderKLWan(**WAN | changes)
    found = load_autoencoder(saved(net.state_dict(), tmp_path / "wan.safetensors"))
    assert found.latent_spec.latents_mean is not None
    assert found.latent_spec.latents_mean[0] == mean
    found = load_autoencoder(tmp_path / "wan.safetensors", config={"latents_mean": [1.0] * channels})
    assert found.latent_spec.latents_mean == (1.0,) * channels
