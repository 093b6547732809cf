"""The CompVis format: keys and shapes from a list written by hand, and equal outputs in an independent network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.interop import export_ldm, from_ldm_state_dict, to_ldm_state_dict
from ldm_ae.models import KLAutoencoder
from tests.interop.compvis_reference import CompVisAutoencoder

# The four entries of the LDM zoo with widths scaled down from 128 to 32: ch_mult, z_channels, attention resolutions
# at 256 pixels.
ZOO = {
    "f4": ((1, 2, 4), 3, ()),
    "f8": ((1, 2, 4, 4), 4, ()),
    "f16": ((1, 1, 2, 2, 4), 16, (16,)),
    "f32": ((1, 1, 2, 2, 4, 4), 64, (16, 8)),
}
CH = 32


def zoo_model(name: str) -> KLAutoencoder:
    ch_mult, channels, resolutions = ZOO[name]
    return KLAutoencoder(
        block_out_channels=tuple(CH * mult for mult in ch_mult),
        layers_per_block=2,
        latent_channels=channels,
        attention_levels=tuple(level for level in range(len(ch_mult)) if 256 // 2**level in resolutions),
    )


def described_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of CompVis's network for a zoo entry, spelled out without the code under test."""
    ch_mult, z, resolutions = ZOO[name]
    widths = [CH * mult for mult in ch_mult]
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(key: str, inputs: int, outputs: int, kernel: int = 3) -> None:
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (outputs, inputs, kernel, kernel), (outputs,)

    def norm(key: str, width: int) -> None:
        shapes[f"{key}.weight"] = shapes[f"{key}.bias"] = (width,)

    def block(key: str, inputs: int, outputs: int) -> None:
        norm(f"{key}.norm1", inputs)
        conv(f"{key}.conv1", inputs, outputs)
        norm(f"{key}.norm2", outputs)
        conv(f"{key}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{key}.nin_shortcut", inputs, outputs, 1)

    def attention(key: str, width: int) -> None:
        norm(f"{key}.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            conv(f"{key}.{layer}", width, width, 1)

    for half in ("encoder", "decoder"):
        block(f"{half}.mid.block_1", widths[-1], widths[-1])
        attention(f"{half}.mid.attn_1", widths[-1])
        block(f"{half}.mid.block_2", widths[-1], widths[-1])
    conv("encoder.conv_in", 3, CH)
    width = CH
    for i, outputs in enumerate(widths):
        for j in range(2):
            block(f"encoder.down.{i}.block.{j}", width, outputs)
            width = outputs
            if 256 // 2**i in resolutions:
                attention(f"encoder.down.{i}.attn.{j}", width)
        if i < len(widths) - 1:
            conv(f"encoder.down.{i}.downsample.conv", width, width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", width, 2 * z)
    conv("quant_conv", 2 * z, 2 * z, 1)
    conv("post_quant_conv", z, z, 1)
    conv("decoder.conv_in", z, width)
    for i in reversed(range(len(widths))):
        for j in range(3):
            block(f"decoder.up.{i}.block.{j}", width, widths[i])
            width = widths[i]
            if 256 // 2**i in resolutions:
                attention(f"decoder.up.{i}.attn.{j}", width)
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", width, width)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", width, 3)
    return shapes


@pytest.mark.parametrize("name", ZOO)
def test_exported_keys_and_shapes_match_the_compvis_models(name: str, tmp_path: Path) -> None:
    export_ldm(zoo_model(name), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert found == described_keys(name)
    params = yaml.safe_load((tmp_path / "out/config.yaml").read_text())["model"]["params"]
    ch_mult, z, resolutions = ZOO[name]
    assert params["embed_dim"] == z
    assert params["ddconfig"] == {
        "double_z": True, "z_channels": z, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": CH,
        "ch_mult": list(ch_mult), "num_res_blocks": 2, "attn_resolutions": list(resolutions), "dropout": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("levels", [(), (1,), (0, 2)])
def test_exported_weights_give_equal_outputs_in_an_independent_network(
    levels: tuple[int, ...], middle: bool, tmp_path: Path
) -> None:
    model = KLAutoencoder(
        block_out_channels=(32, 64, 64), layers_per_block=1, attention_levels=levels,
        mid_block_add_attention=middle,
    ).eval()  # fmt: skip
    model.set_sample_size(32)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start at 1 and 0, which would hide a swap
            parameter.add_(0.1 * torch.randn_like(parameter))
        export_ldm(model, tmp_path / "out")
        params = yaml.safe_load((tmp_path / "out/config.yaml").read_text())["model"]["params"]
        other = CompVisAutoencoder(params["ddconfig"], params["embed_dim"], groups=32)
        other.load_state_dict(load_file(tmp_path / "out/model.safetensors"), strict=True)
        pixels, latents = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 8, 8)
        # Two implementations of the same float32 arithmetic: only the order of sums differs.
        moments = other.moments(pixels)
        torch.testing.assert_close(moments, model.encode(pixels).moments, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.decode(latents), model.decode(latents), atol=1e-5, rtol=1e-5)


def test_missing_quant_convolutions_are_exported_as_identities() -> None:
    kwargs = dict(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32), sample_size=8,
    )  # fmt: skip
    net = AutoencoderKL(use_quant_conv=False, use_post_quant_conv=False, **kwargs)
    state = to_ldm_state_dict(net.state_dict())
    assert torch.equal(state["quant_conv.weight"][:, :, 0, 0], torch.eye(8))
    assert torch.equal(state["post_quant_conv.weight"][:, :, 0, 0], torch.eye(4))
    other = AutoencoderKL(**kwargs)
    other.load_state_dict(from_ldm_state_dict(state), strict=True)
    pixels = torch.rand(1, 3, 8, 8)
    with torch.no_grad():  # an identity convolution multiplies by 1.0 and adds 0.0: exact
        assert torch.equal(other.encode(pixels).latent_dist.mode(), net.encode(pixels).latent_dist.mode())


@pytest.mark.parametrize("name", ["f8", "f32"])
def test_export_and_import_roundtrip_the_state_dict(name: str) -> None:
    state = zoo_model(name).net.state_dict()
    back = from_ldm_state_dict(to_ldm_state_dict(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_unknown_keys_are_refused_by_name() -> None:
    state = zoo_model("f4").net.state_dict()
    with pytest.raises(UserError, match=r"'loss\.logvar' is not a key"):
        from_ldm_state_dict({**to_ldm_state_dict(state), "loss.logvar": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'encoder\.surprise\.weight' is not a key"):
        to_ldm_state_dict({**state, "encoder.surprise.weight": torch.zeros(1)})


def test_networks_that_compvis_cannot_build_are_refused(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="32 groups, this model has 4"):
        export_ldm(tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    uneven = KLAutoencoder(block_out_channels=(64, 96), layers_per_block=1)
    with pytest.raises(UserError, match="96 is not"):
        export_ldm(uneven, tmp_path / "out")
    other_activation = KLAutoencoder(block_out_channels=(32, 32), layers_per_block=1, act_fn="gelu")
    with pytest.raises(UserError, match="gelu"):
        export_ldm(other_activation, tmp_path / "out")


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ({"scaling_factor": 0.25}, "# Latents times 0.25 have unit variance, if measured"),
        (
            {"scaling_factor": 0.3611, "shift_factor": 0.1159},
            "# The scale of these latents is (latents - 0.1159) * 0.3611.",
        ),
        (
            {"scaling_factor": 0.5, "latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (5.0, 6.0, 7.0, 8.0)},
            "# The scale of these latents is (latents - mean) / std * 0.5, channel by channel, with mean\n"
            "# [1.0, 2.0, 3.0, 4.0] and std [5.0, 6.0, 7.0, 8.0].\n",
        ),
    ],
)
def test_export_prints_the_complete_scale(
    scale: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = KLAutoencoder(block_out_channels=(32,), layers_per_block=1)
    model.set_scaling(**scale)
    model.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "ldm"]) == 0
    text = (tmp_path / "out/config.yaml").read_text()
    assert words in text
    assert yaml.safe_load(text)["model"]["params"]["embed_dim"] == 4
    assert ("note: The scale of these latents is" in capsys.readouterr().err) == (len(scale) > 1)
