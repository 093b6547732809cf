"""A single file of weights as MODEL: in Python, in training's `pretrained`, and in the commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ldm_ae
from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.models import (
    AUTOENCODERS,
    Autoencoder,
    KLAutoencoder,
    VQAutoencoder,
    is_model_folder,
    load_autoencoder,
    model_hash,
)
from ldm_ae.models.loading.ldm_keys import rename_keys
from ldm_ae.models.loading.scales import scale_of
from ldm_ae.models.loading.shapes import LDMNetwork
from ldm_ae.quantizers import VQ
from tests.models.examples import skip_if_missing

SMALL: dict[str, Any] = {"block_out_channels": (32, 32), "layers_per_block": 1, "mid_block_add_attention": False}


def flux_like(**changes: Any) -> KLAutoencoder:
    return KLAutoencoder(**SMALL | {"latent_channels": 16, "use_quant_conv": False} | changes).eval()


def save_compvis(model: KLAutoencoder, path: Path) -> Path:
    state = model.net.state_dict()
    names = rename_keys(state, source=0)
    save_file({names[key]: value.contiguous() for key, value in state.items()}, path)
    return path


def reconstructions(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.decode(model.encode(x).mode())


def test_single_file_is_a_model_in_python(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = flux_like()
    path = save_compvis(model, tmp_path / "ae.safetensors")
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    with caplog.at_level(logging.WARNING, "ldm_ae"):
        found = ldm_ae.load(path, device="cpu")
    torch.testing.assert_close(reconstructions(found, x), reconstructions(model, x))  # another memory layout
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not found.training
    (notice,) = caplog.messages
    assert len(notice.splitlines()) == 2
    for words in ("ae.safetensors: CompVis's keys: KL autoencoder, downsample factor 2, 16 latent channels",
                  "assumed 32 groups", "scaling_factor 1: unknown, not measured",
                  "--config JSON_FILE|MODEL_FOLDER overrides any of it"):  # fmt: skip
        assert words in notice
    assert is_model_folder(path)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert not is_model_folder(tmp_path / "image.png")


def test_given_configuration_overrides_the_inferred_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = flux_like(block_out_channels=(8, 16), norm_num_groups=4)
    path = save_compvis(model, tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match=r"a width of 8 is not divisible into 32 groups.* as --config"):
        load_autoencoder(path)
    values = {"norm_num_groups": 4, "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 64}
    (tmp_path / "given.json").write_text(json.dumps(values))
    model.save_pretrained(tmp_path / "folder")
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    for config in (values, tmp_path / "given.json", tmp_path / "folder"):
        found = load_autoencoder(path, config=config)
        assert torch.equal(reconstructions(found, x), reconstructions(model, x))
    found = load_autoencoder(path, config=tmp_path / "given.json")
    spec = found.latent_spec
    assert (spec.scaling_factor, spec.shift_factor, found.sample_size) == (0.3611, 0.1159, 64)
    assert f"scaling_factor 0.3611, shift_factor 0.1159: given in {tmp_path / 'given.json'}" in caplog.text
    assert "32 groups" not in caplog.text


def test_configuration_that_does_not_fit_is_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    path = save_compvis(flux_like(), tmp_path / "ae.safetensors")
    for config, words in (
        ({"_class_name": "VQModel"}, "config is the configuration of a VQModel, but .* holds a AutoencoderKL"),
        ({"_class_name": "UNet2DModel"}, "is the configuration of a UNet2DModel, a diffusion model"),
        ({"layers_per_block": 10**6}, "layers_per_block must be from 1 to 64"),
        ({"layers_per_block": 2}, r"has no decoder\.up\.1\.block\.2"),
        ({"latent_channels": 7}, "the configuration requires shape"),
        ({"norm_num_groups": 0}, "norm_num_groups must be a whole number above 0"),
        ({"norm_num_groups": 5}, "not divisible into 5 groups"),
        ({"block_out_channels": "many"}, "cannot be built as AutoencoderKL"),
        (tmp_path / "none.json", "no such configuration: "),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_autoencoder(path, config=config)  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"is a model folder with its own config\.json; a config"):
        load_autoencoder(tiny_model_folder, config={"scaling_factor": 1.0})


def test_class_without_inference_opens_by_its_configuration(tmp_path: Path, patch_linear: None) -> None:
    """A class of another package, of which no layout knows the keys."""
    from tests.models.patch_linear import PatchLinearAutoencoder

    model = PatchLinearAutoencoder().eval()
    state = {f"vae.{key}": value for key, value in model.net.state_dict().items()}
    save_file(state | {"unet.weight": torch.zeros(2)}, tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match="does not hold an autoencoder of a known layout"):
        load_autoencoder(tmp_path / "ae.safetensors")
    model.save_pretrained(tmp_path / "folder")
    found = load_autoencoder(tmp_path / "ae.safetensors", config=tmp_path / "folder")
    assert model_hash(found) == model_hash(model)
    save_compvis(flux_like(), tmp_path / "kl.safetensors")
    with pytest.raises(UserError, match=r"does not hold the PatchLinear of .*config\.json: it has no weight"):
        load_autoencoder(tmp_path / "kl.safetensors", config=tmp_path / "folder")


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_file_of_any_class_opens_by_its_configuration(name: str, tmp_path: Path) -> None:
    skip_if_missing(name)
    model = AUTOENCODERS[name].example(name).eval()
    model.save_config(tmp_path / "folder")
    state = {f"vae.{key}": value.contiguous() for key, value in model.net.state_dict().items()}
    save_file(state | {"unet.weight": torch.zeros(2)}, tmp_path / "ae.safetensors")
    found = load_autoencoder(tmp_path / "ae.safetensors", config=tmp_path / "folder")
    assert type(found.net).__name__ == name
    assert model_hash(found) == model_hash(model)
    assert found.spec == model.spec
    latents = torch.randn(1, model.latent_spec.channels, *model.latent_spec.latent_size(*[side_of(model)] * 2))
    if model.codebook is None:
        with torch.no_grad():
            torch.testing.assert_close(found.decode(latents), model.decode(latents))  # memory is aligned otherwise


def side_of(model: Autoencoder) -> int:
    return model.latent_spec.image_size or 2 * model.latent_spec.downsample_factor


def test_pickled_file_is_only_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = flux_like()
    state = load_file(save_compvis(model, tmp_path / "ae.safetensors"))
    for zipped in (True, False):
        torch.save(state, tmp_path / "ae.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"is a pickled checkpoint: .* Convert it once .* import .*ae\.ckpt"):
            load_autoencoder(tmp_path / "ae.ckpt")
        with pytest.raises(UserError, match="is a pickled checkpoint"):
            KLAutoencoder(pretrained=str(tmp_path / "ae.ckpt"))
    assert main(["import", str(tmp_path / "ae.ckpt"), str(tmp_path / "out")]) == 0
    assert model_hash(load_autoencoder(tmp_path / "out")) == model_hash(model)


def test_training_starts_from_a_single_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = flux_like()
    path = str(save_compvis(model, tmp_path / "ae.safetensors"))
    started = KLAutoencoder(pretrained=path)
    assert model_hash(started) == model_hash(model)
    assert all(parameter.requires_grad for parameter in started.parameters())
    assert "CompVis's keys" in caplog.text
    quantized = VQAutoencoder(pretrained=path, quantizer=VQ(8, 16))
    assert torch.equal(quantized.net.decoder.conv_out.weight, model.net.decoder.conv_out.weight)
    vq = VQAutoencoder(quantizer=VQ(8, 3), **SMALL)
    save_file(vq.net.state_dict(), tmp_path / "vq.safetensors")
    assert model_hash(VQAutoencoder(pretrained=str(tmp_path / "vq.safetensors"))) == model_hash(vq)
    with pytest.raises(UserError, match="holds a VQModel, not a AutoencoderKL"):
        KLAutoencoder(pretrained=str(tmp_path / "vq.safetensors"))


def test_flux_network_alone_implies_its_scale() -> None:
    network = LDMNetwork(
        ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attention_levels=(), middle_attention=True, z_channels=16,
        embed_dim=16, double_z=True, quant_conv=False, n_embed=None, quantization="none",
    )  # fmt: skip
    state = {"encoder.conv_in.weight": torch.zeros(1)}
    scale = scale_of(state, "", network)
    assert (scale.factor, scale.shift) == (0.3611, 0.1159)
    assert "Stable Diffusion 3's weights look the same and have the factor 1.5305 and shift 0.0609" in scale.source
    assert not scale_of(state, "", network, compvis=False).known  # diffusers' keys: as likely SD3's


def test_commands_take_a_single_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = flux_like(block_out_channels=(8, 16), norm_num_groups=4)
    path = str(save_compvis(model, tmp_path / "ae.safetensors"))
    (tmp_path / "given.json").write_text(json.dumps({"norm_num_groups": 4, "scaling_factor": 0.5}))
    given = ["--config", str(tmp_path / "given.json")]
    assert main(["inspect", path, *given, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["kind"], found["layout"], found["class"]) == ("single file", "CompVis's keys", "AutoencoderKL")
    assert (found["latent_channels"], found["scaling_factor"]) == (16, 0.5)
    assert found["scale"] == f"given in {tmp_path / 'given.json'}"
    assert main(["inspect", path]) == 2
    assert "is not valid: " in capfd.readouterr().err
    assert main(["export", path, str(tmp_path / "out"), *given]) == 0
    assert model_hash(load_autoencoder(tmp_path / "out")) == model_hash(model)
    assert load_autoencoder(tmp_path / "out").latent_spec.scaling_factor == 0.5


@pytest.mark.slow
def test_images_are_encoded_and_decoded_by_a_single_file(
    tmp_path: Path, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(save_compvis(flux_like(), tmp_path / "ae.safetensors"))
    images, size = str(image_folder), ["--size", "16", "--workers", "0"]
    assert main(["reconstruct", path, images, str(tmp_path / "rec"), *size]) == 0
    assert list((tmp_path / "rec").rglob("*.png"))
    assert main(["encode", path, images, str(tmp_path / "store"), *size]) == 0
    assert main(["decode", path, str(tmp_path / "store"), str(tmp_path / "dec")]) == 0
    assert caplog.text.count("CompVis's keys: KL autoencoder") == 1  # once in a process
