"""The weight files of a model folder: variants, shards, and the error for each kind of damage."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.models import KLAutoencoder, VQAutoencoder, load_autoencoder
from ldm_ae.models.loading.weights import weight_files
from ldm_ae.quantizers import VQ

SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
STEM = "diffusion_pytorch_model"


def parameters(model: KLAutoencoder) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


@pytest.fixture
def model() -> KLAutoencoder:
    return KLAutoencoder(**SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], None, f"{STEM}.safetensors"),
        ([f"{STEM}.fp16.safetensors", f"{STEM}.bin"], "fp16", f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.non_ema.safetensors", f"{STEM}.fp16.safetensors"], "fp16", f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.non_ema.safetensors", f"{STEM}.other.safetensors"], "other", f"{STEM}.other.safetensors"),
        ([f"{STEM}.safetensors.index.json", f"{STEM}-00001-of-00002.safetensors"], None,
         f"{STEM}.safetensors.index.json"),
        ([f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-00001-of-00002.safetensors"], "fp16",
         f"{STEM}.safetensors.index.fp16.json"),
    ],
)  # fmt: skip
def test_weights_without_a_variant_are_preferred(names: list[str], variant: str | None, chosen: str) -> None:
    found = weight_files(names)
    assert found is not None
    assert (found.variant, found.patterns[0]) == (variant, chosen)


def test_folders_without_safetensors_weights_have_none() -> None:
    assert (
        weight_files(["config.json", f"{STEM}.bin", f"{STEM}.fp16.bin", f"{STEM}-00001-of-00002.safetensors"]) is None
    )


@pytest.mark.parametrize("place", ["", "vae", "movq"])
def test_folder_with_only_an_fp16_variant_opens(
    place: str, model: KLAutoencoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.half().net.save_pretrained(tmp_path / place, variant="fp16")
    assert (tmp_path / place / f"{STEM}.fp16.safetensors").is_file()
    with caplog.at_level(logging.WARNING, "ldm_ae"):
        found = load_autoencoder(tmp_path)
    assert found.dtype == torch.float32
    assert torch.equal(parameters(found), parameters(model).float())  # type: ignore[arg-type]
    assert "has only weights of the variant fp16" in caplog.text
    started = KLAutoencoder(pretrained=str(tmp_path))
    assert torch.equal(parameters(started), parameters(model).float())


def test_full_precision_is_read_where_both_are_there(model: KLAutoencoder, tmp_path: Path) -> None:
    model.net.save_pretrained(tmp_path)
    expected = parameters(model)
    model.half().net.save_pretrained(tmp_path, variant="fp16")
    assert torch.equal(parameters(load_autoencoder(tmp_path)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_folder_opens(variant: str | None, model: KLAutoencoder, tmp_path: Path) -> None:
    model.net.save_pretrained(tmp_path, max_shard_size="20KB", variant=variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(parameters(load_autoencoder(tmp_path)), parameters(model))  # type: ignore[arg-type]
    vq = VQAutoencoder(quantizer=VQ(8, 4), **SMALL)  # type: ignore[arg-type]
    vq.net.save_pretrained(tmp_path / "vqvae", max_shard_size="20KB")
    (tmp_path / "config.json").unlink()
    assert isinstance(load_autoencoder(tmp_path), VQAutoencoder)


def test_damaged_shards_are_refused_in_one_line(model: KLAutoencoder, tmp_path: Path) -> None:
    model.net.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / f"{STEM}.safetensors.index.json"
    shards = sorted(tmp_path.glob("*.safetensors"))
    count = len(shards)

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            load_autoencoder(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    content = shards[1].read_bytes()
    shards[1].unlink()
    assert f"has {count - 1} of {count} shards: {shards[1].name} is missing; download it again" in refused()
    shards[1].write_bytes(content[:100])
    assert "cannot be loaded as AutoencoderKL" in refused()
    shards[1].write_bytes(content)
    for text, words in (
        ("{", "is not valid JSON"), ("[]", "is not an index of weights"), ('{"weight_map": {}}', "is not an index"),
        (json.dumps({"weight_map": {"a": "../x.safetensors"}}), "expected a safetensors file in the same folder"),
        (json.dumps({"weight_map": {"a": "pytorch_model.bin"}}), "expected a safetensors file in the same folder"),
        (json.dumps({"weight_map": {"a": 3}}), "is not an index of weights"),
    ):  # fmt: skip
        index.write_text(text)
        assert words in refused()
