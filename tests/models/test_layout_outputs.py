"""Single files of each class of network: the inferred configuration and the outputs equal those of the source network.

Original keys come from networks written as their authors wrote them, or from names written out here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.interop import import_ldm
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.models.loading.single_file import open_single_file
from tests.interop.compvis_reference import CompVisAutoencoder
from tests.interop.test_ldm_import import CLOSE, DDCONFIG, pixels, shaken

State = dict[str, Tensor]
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def saved(state: State, path: Path, prefix: str = "") -> Path:
    save_file({f"{prefix}{key}": value.contiguous() for key, value in state.items()}, path)
    return path


def check_equal(net: Any, path: Path) -> Autoencoder:
    """Assert that the file opens with the configuration of `net` and its outputs, by diffusers' own functions."""
    found = load_autoencoder(path)
    assert type(found.net).__name__ == type(net).__name__
    for key, value in net.config.items():
        if not key.startswith("_") and key not in ("sample_size", "scaling_factor", "force_upcast"):
            assert as_list(found.net.config[key]) == as_list(value), key
    x = pixels()
    with torch.no_grad():
        encoded = net.encode(x)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
        torch.testing.assert_close(found.encode(x).mode(), latents, **CLOSE)  # attention adds up in another order
        torch.testing.assert_close(found.decode(latents), net.decode(latents).sample, **CLOSE)
    return found


def as_list(value: Any) -> Any:
    return [as_list(item) for item in value] if isinstance(value, list | tuple) else value


# --------------------------------------------------------------------------------------------------------------- FLUX.2


def flux2(**changes: Any) -> Any:
    config: dict[str, Any] = {**BLOCKS, "block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 4}
    return shaken(diffusers.AutoencoderKLFlux2(**config | changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"decoder_block_out_channels": (32, 64)}, {"patch_size": (1, 1)}, {"mid_block_add_attention": False},
     {"use_quant_conv": False, "use_post_quant_conv": False}],
)  # fmt: skip
def test_flux2_weights_under_diffusers_keys_open(changes: dict[str, Any], tmp_path: Path) -> None:
    net = flux2(**changes)
    net.bn.running_mean.normal_()
    net.bn.running_var.uniform_(0.5, 2.0)
    found = check_equal(net, saved(net.state_dict(), tmp_path / "ae.safetensors", "vae."))
    assert torch.equal(found.net.bn.running_mean, net.bn.running_mean)


def test_flux2_file_of_black_forest_labs_opens(tmp_path: Path) -> None:
    """Their network is CompVis's with the quant convolutions in the halves, and `bn` beside them."""
    config = {**DDCONFIG, "ch": 32, "ch_mult": [1, 2], "attn_resolutions": [], "double_z": True}
    theirs: Any = shaken(CompVisAutoencoder(config, 4, groups=32))
    bn = nn.BatchNorm2d(16, eps=1e-4, affine=False)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2.0)
    state = {key.replace("post_quant_conv", "decoder.post_quant_conv") if key.startswith("post_")
             else f"encoder.{key}" if key.startswith("quant_conv") else key: value
             for key, value in theirs.state_dict().items()}  # fmt: skip
    assert "encoder.quant_conv.weight" in state
    state |= {f"bn.{key}": value for key, value in bn.state_dict().items()}
    for left_out in (None, "bn.num_batches_tracked"):
        state = {key: value for key, value in state.items() if key != left_out}
        found = load_autoencoder(saved(state, tmp_path / "ae.safetensors"))
        x = pixels()
        with torch.no_grad():
            moments = theirs.moments(x)
            torch.testing.assert_close(found.encode(x).moments, moments, **CLOSE)
            latents = moments.chunk(2, dim=1)[0]
            torch.testing.assert_close(found.decode(latents), theirs.decode(latents), **CLOSE)
            # FLUX.2's code normalizes latents packed as (c, height in the square, width in the square).
            packed = latents.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
            torch.testing.assert_close(found.scale(latents), bn.eval()(packed), atol=1e-5, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- tiny


def conv(taken: int, given: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(taken, given, 3, padding=1, **more)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))
        self.skip, self.fuse = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + self.skip(x))


class Taesd(nn.Module):
    """As in taesd.py, with fewer and narrower levels."""

    def __init__(self, channels: int = 4, width: int = 6):
        super().__init__()
        down: dict[str, Any] = {"stride": 2, "bias": False}
        self.encoder = nn.Sequential(
            conv(3, width), Block(width), conv(width, width, **down), Block(width), Block(width), conv(width, channels)
        )
        self.decoder = nn.Sequential(
            Clamp(), conv(channels, width), nn.ReLU(), Block(width), Block(width), nn.Upsample(scale_factor=2),
            conv(width, width, bias=False), Block(width), conv(width, 3),
        )  # fmt: skip


def check_taesd(net: Taesd, found: Autoencoder) -> None:
    x = pixels()
    with torch.no_grad():
        latents = net.encoder((x + 1) / 2)  # TAESD's pixels are in [0, 1]
        torch.testing.assert_close(found.encode(x).mode(), latents, **CLOSE)
        torch.testing.assert_close(found.decode(latents), net.decoder(latents) * 2 - 1, **CLOSE)


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("prefix", ["", "vae.", "taesd_"])
def test_taesd_in_one_file_opens(prefix: str, channels: int, tmp_path: Path) -> None:
    net: Any = shaken(Taesd(channels))
    found = load_autoencoder(saved(net.state_dict(), tmp_path / "taesd.safetensors", prefix))
    check_taesd(net, found)
    config = found.net.config
    assert (tuple(config.num_encoder_blocks), tuple(config.num_decoder_blocks)) == ((1, 2), (2, 1))
    assert tuple(config.encoder_block_out_channels) == (6, 6)
    assert found.latent_spec.channels == channels
    assert (found.latent_spec.downsample_factor, found.latent_spec.scaling_factor) == (2, 1.0)


def test_taesd_in_two_files_opens_by_either(tmp_path: Path) -> None:
    net: Any = shaken(Taesd())
    for half in ("encoder", "decoder"):
        saved(getattr(net, half).state_dict(), tmp_path / f"taesd_{half}.safetensors")
    for half in ("encoder", "decoder"):
        check_taesd(net, load_autoencoder(tmp_path / f"taesd_{half}.safetensors"))
    (tmp_path / "taesd_encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"half of a TAESD.* taesd_encoder\.safetensors and taesd_decoder\.safetensors"):
        load_autoencoder(tmp_path / "taesd_decoder.safetensors")


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_encoder_blocks": (1, 1, 2), "encoder_block_out_channels": (4, 4, 4), "num_decoder_blocks": (2, 1, 1),
          "decoder_block_out_channels": (6, 6, 6), "latent_channels": 32}],
)  # fmt: skip
def test_tiny_weights_under_diffusers_keys_open(changes: dict[str, Any], tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4), "num_encoder_blocks": (1, 3),
        "num_decoder_blocks": (3, 1),
    }  # fmt: skip
    net: Any = shaken(diffusers.AutoencoderTiny(**config | changes))
    check_equal(net, saved(net.state_dict(), tmp_path / "tiny.safetensors"))


# ---------------------------------------------------------------------------------------------------------------- DC-AE

DC: dict[str, Any] = {
    "latent_channels": 4, "attention_head_dim": 8, "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (8, 8, 16),
    "decoder_block_out_channels": (8, 16, 16), "encoder_layers_per_block": (1, 2, 1),
    "decoder_layers_per_block": (2, 1, 1), "encoder_qkv_multiscales": ((), (), (5,)),
    "decoder_qkv_multiscales": ((), (), (5,)), "decoder_norm_types": ("rms_norm",) * 3,
    "decoder_act_fns": ("silu",) * 3,
}  # fmt: skip
DC_CHANGES: dict[str, dict[str, Any]] = {
    "pixel shuffle": {},
    "conv": {"downsample_block_type": "conv", "upsample_block_type": "interpolate"},
    "batch norm": {"decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
                   "decoder_act_fns": ("relu", "relu", "silu")},
    "no blocks in the first level": {
        "encoder_layers_per_block": (0, 1, 1), "decoder_layers_per_block": (0, 1, 1),
        "encoder_block_out_channels": (4, 8, 16), "decoder_block_out_channels": (4, 8, 16),
    },
}  # fmt: skip


def dc(name: str) -> Any:
    return shaken(diffusers.AutoencoderDC(**DC | DC_CHANGES[name]))


@pytest.mark.parametrize("name", DC_CHANGES)
def test_dc_ae_weights_under_diffusers_keys_open(name: str, tmp_path: Path) -> None:
    net = dc(name)
    check_equal(net, saved(net.state_dict(), tmp_path / "dc.safetensors", "module."))


def efficientvit(net: Any) -> State:
    """The weights under the names that efficientvit's modules give them, block by block."""
    found: State = {}

    def add(name: str, module: Any) -> None:
        for key, value in module.state_dict().items():
            found[f"{name}.{key}"] = value

    def add_block(name: str, block: Any) -> None:
        if type(block).__name__ == "ResBlock":
            add(f"{name}.main.conv1.conv", block.conv1)
            add(f"{name}.main.conv2.conv", block.conv2)
            add(f"{name}.main.conv2.norm", block.norm)
            return
        if type(block).__name__ != "EfficientViTBlock":
            plain = getattr(block, "downsample", None) is False
            add(f"{name}.main.conv" if plain else f"{name}.main.conv.conv", block.conv)
            return
        attention, local = block.attn, block.conv_out
        qkv = [getattr(attention, f"to_{part}").weight for part in "qkv"]
        found[f"{name}.context_module.main.qkv.conv.weight"] = torch.cat(qkv)[:, :, None, None].detach()
        found[f"{name}.context_module.main.proj.conv.weight"] = attention.to_out.weight[:, :, None, None].detach()
        add(f"{name}.context_module.main.proj.norm", attention.norm_out)
        add(f"{name}.context_module.main.aggreg.0.0", attention.to_qkv_multiscale[0].proj_in)
        add(f"{name}.context_module.main.aggreg.0.1", attention.to_qkv_multiscale[0].proj_out)
        add(f"{name}.local_module.main.inverted_conv.conv", local.conv_inverted)
        add(f"{name}.local_module.main.depth_conv.conv", local.conv_depth)
        add(f"{name}.local_module.main.point_conv.conv", local.conv_point)
        add(f"{name}.local_module.main.point_conv.norm", local.norm)

    for half, blocks in (("encoder", net.encoder.down_blocks), ("decoder", net.decoder.up_blocks)):
        for i, level in enumerate(blocks):
            for j, block in enumerate(level):
                add_block(f"{half}.stages.{i}.op_list.{j}", block)
    add("encoder.project_in.conv", net.encoder.conv_in)
    add("encoder.project_out.main.op_list.0.conv", net.encoder.conv_out)
    add("decoder.project_in.main.conv", net.decoder.conv_in)
    add("decoder.project_out.op_list.0", net.decoder.norm_out)
    add("decoder.project_out.op_list.2.conv", net.decoder.conv_out)
    return found


@pytest.mark.parametrize("name", DC_CHANGES)
def test_dc_ae_of_its_authors_opens(name: str, tmp_path: Path) -> None:
    net = dc(name)
    check_equal(net, saved(efficientvit(net), tmp_path / "model.safetensors"))


# -------------------------------------------------------------------------------------- others under diffusers' keys


@pytest.mark.parametrize("up", [(32, 64), (64, 96)])
def test_asymmetric_weights_under_diffusers_keys_open(up: tuple[int, ...], tmp_path: Path) -> None:
    net: Any = shaken(diffusers.AsymmetricAutoencoderKL(
        **BLOCKS, down_block_out_channels=(32, 32), up_block_out_channels=up, layers_per_down_block=1,
        layers_per_up_block=2,
    ))  # fmt: skip
    check_equal(net, saved(net.state_dict(), tmp_path / "asymmetric.safetensors"))


@pytest.mark.parametrize(
    "changes", [{}, {"block_out_channels": (32, 32, 64), "spatial_compression_ratio": 4, "layers_per_block": 1}]
)
def test_hunyuan_image_weights_under_diffusers_keys_open(changes: dict[str, Any], tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (32, 64),
        "layers_per_block": 2, "spatial_compression_ratio": 2, "sample_size": 32,
    }  # fmt: skip
    net: Any = shaken(diffusers.AutoencoderKLHunyuanImage(**config | changes))
    check_equal(net, saved(net.state_dict(), tmp_path / "hunyuan.safetensors", "vae."))


def test_import_writes_the_folder_of_any_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net: Any = shaken(Taesd())
    path = saved(net.state_dict(), tmp_path / "taesd.safetensors")
    assert main(["import", str(path), str(tmp_path / "out")]) == 0
    assert "TAESD's keys: tiny autoencoder (TAESD), downsample factor 2, 4 latent channels" in capsys.readouterr().out
    check_taesd(net, load_autoencoder(tmp_path / "out"))
    assert isinstance(diffusers.AutoencoderTiny.from_pretrained(tmp_path / "out"), diffusers.AutoencoderTiny)
    for option in (["--family", "sd"], ["--config", str(tmp_path / "a.yaml")]):
        assert main(["import", str(path), str(tmp_path / "other"), *option]) == 2
        assert "describes KL and VQ autoencoders, but" in capsys.readouterr().err


def test_import_takes_a_configuration_of_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net: Any = shaken(diffusers.AutoencoderKL(**BLOCKS, block_out_channels=(8, 8), norm_num_groups=2))
    path = saved(net.state_dict(), tmp_path / "kl.safetensors")
    net.save_config(tmp_path / "folder")
    assert main(["import", str(path), str(tmp_path / "out"), "--config", str(tmp_path / "folder")]) == 0
    said = capsys.readouterr()
    assert f"scaling_factor 0.18215: given in {tmp_path / 'folder/config.json'}" in said.out
    assert "sample_size is assumed" not in said.err
    check_equal(net, tmp_path / "out")
    with pytest.raises(UserError, match=r"--family and the configuration .*, which has a scale, exclude each other"):
        import_ldm(path, tmp_path / "other", config=tmp_path / "folder", family="flux")
    (tmp_path / "part.json").write_text('{"norm_num_groups": 2, "scaling_factor": 0.5}')
    with pytest.raises(UserError, match=r"--family sd has the scale 0\.18215, but given in .* is 0\.5"):
        import_ldm(path, tmp_path / "other", config=tmp_path / "part.json", family="sd")


def test_what_was_inferred_is_described(tmp_path: Path) -> None:
    for net, words in (
        (dc("conv"), "deep-compression autoencoder (DC-AE), downsample factor 4, 4 latent channels, widths 8, 8, 16"),
        (flux2(), "FLUX.2's KL autoencoder, downsample factor 2, 4 latent channels, widths 32, 32"),
    ):
        file = open_single_file(saved(net.state_dict(), tmp_path / "x.safetensors"))
        assert words in file.lines()[0]
        assert len(file.notice().splitlines()) == 2
