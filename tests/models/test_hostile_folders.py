"""Model folders with an invalid configuration or invalid weights are refused in one line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ldm_ae.core.errors import UserError
from ldm_ae.models import LatentSpec, load_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "too many layers": ({"layers_per_block": 10**6}, "layers_per_block must be from 1 to 64"),
    "fewer layers than weights": ({"layers_per_block": -1}, "layers_per_block must be from 1 to 64"),
    "too many blocks": ({"block_out_channels": [4] * 5000}, "block_out_channels has more than 1024 entries"),
    "larger than memory": ({"latent_channels": 10**15}, "cannot be loaded as AutoencoderKL"),
    "a layer more": ({"layers_per_block": 2}, "has no weight"),
    "attention that is not there": ({"mid_block_add_attention": True}, "has no weight .*attentions"),
    "a layer less": ({"use_quant_conv": False}, r"has an unknown weight quant_conv\.bias"),
    "size": ({"sample_size": 10**9}, "sample_size must be from 1 to 65536"),
    "no size": ({"sample_size": None}, "sample_size must be from 1 to 65536"),
    "mean": ({"latents_mean": 3}, "latents_mean must be a list"),
    "words in the mean": ({"latents_mean": ["a", {}, None, 1]}, r"config\.json: latents: .* must be finite numbers"),
    "too few means": ({"latents_mean": [1.0], "latents_std": [1.0]}, "one number per channel"),
    "no scale": ({"scaling_factor": None}, "must be finite numbers"),
    "scale of 0": ({"scaling_factor": 0}, "must not be 0"),
    "scale beyond any float": ({"scaling_factor": 10**400}, "must be finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_invalid_model_configuration_is_refused(name: str, tiny_model_folder: Path) -> None:
    change, message = CHANGES[name]
    path = tiny_model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        load_autoencoder(tiny_model_folder)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10  # a million layers would take an hour


@pytest.mark.parametrize("name", ["missing", "unknown"])
def test_mismatched_weights_are_refused(name: str, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(tiny_model_folder / WEIGHTS)
    if name == "missing":
        del tensors["decoder.conv_out.weight"]
    else:
        tensors["stranger"] = tensors["decoder.conv_out.weight"].clone()
    save_file(tensors, tiny_model_folder / WEIGHTS)
    with pytest.raises(UserError, match=r"no weight decoder\.conv_out|unknown weight stranger"):
        load_autoencoder(tiny_model_folder)
    assert capsys.readouterr().err == ""


def test_remote_code_keys_in_the_configuration_are_ignored(
    tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_model_folder / "config.json"
    change = {"auto_map": {"AutoModel": "somebody.Evil"}, "trust_remote_code": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert load_autoencoder(tiny_model_folder).latent_spec.channels == 4
    assert capsys.readouterr().err == ""


def test_too_deeply_nested_configuration_is_refused(tiny_model_folder: Path) -> None:
    (tiny_model_folder / "config.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match="not valid JSON: it is nested too deeply"):
        load_autoencoder(tiny_model_folder)


@pytest.mark.parametrize("change", [{"channels": 0}, {"downsample_factor": True}, {"channels": 4.0}])
def test_latent_spec_requires_positive_integers(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="whole numbers above 0"):
        LatentSpec(**{"channels": 4, "downsample_factor": 4, "scaling_factor": 1.0} | change)
