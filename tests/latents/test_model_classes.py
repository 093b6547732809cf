"""Stores of models without a posterior hold latents alone and say so; those of packed latents are not packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.formats import FORMATS
from ldm_ae.latents.store.claiming import as_recorded
from ldm_ae.latents.store.format import DESCRIPTION
from ldm_ae.models import Autoencoder
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.training.diffusion.data import check_store
from tests.latents.format_contract import (
    DEFAULT_TOLERANCE,
    OPTIONS,
    PLAIN,
    SCALED,
    TOLERANCE,
    content_of,
    expect,
    positions_of,
)
from tests.latents.format_readers import READERS
from tests.latents.helpers import encode

OF_MOMENTS = sorted(name for name, kind in FORMATS.items() if any(key.startswith("moments") for key in kind.tensors)
                    and "latents" not in kind.tensors and "images" not in kind.takes)  # fmt: skip
OF_LATENTS = sorted(name for name, kind in FORMATS.items()
                    if "latents" in kind.tensors and not kind.needs_captions and name in PLAIN)  # fmt: skip
OF_SCALED = sorted(name for name, kind in FORMATS.items() if kind.scaled)


def store_of(name: str, images: Path, path: Path) -> tuple[Autoencoder, LatentStore]:
    torch.manual_seed(0)
    model = AUTOENCODERS[name].example(name).eval()
    encode(model, images, path)
    return model, LatentStore(path)


@pytest.fixture
def tiny(image_folder: Path, tmp_path: Path) -> LatentStore:
    return store_of("AutoencoderTiny", image_folder, tmp_path / "store")[1]


def test_store_of_a_model_without_a_posterior_states_it(tiny: LatentStore) -> None:
    assert tiny.request.deterministic
    assert verify_store(tiny.path) == []
    shard = min(tiny.path.glob("32x32/*.safetensors"))
    with safe_open(shard, framework="pt") as file:
        assert file.metadata()["deterministic"] == "true"
        assert {"latents", "latents_flip"} <= {*file.keys()}
        assert not any(key.startswith("moments") for key in file.keys())  # noqa: SIM118
    for draw in ("sample", "mode"):
        with pytest.raises(UserError, match=r"no moments to draw from \(its model has no posterior\); use draw stored"):
            LatentDataset(tiny, draw=draw)  # type: ignore[arg-type]


def test_moments_in_a_store_of_a_model_without_a_posterior_are_a_problem(tiny: LatentStore) -> None:
    shard = min(tiny.path.glob("32x32/*.safetensors"))
    with safe_open(shard, framework="pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {"moments": torch.cat([tensors["latents"]] * 2, dim=1)}, shard, header)
    assert any("is damaged" in problem for problem in verify_store(tiny.path))


def test_stores_of_models_with_a_posterior_have_no_new_field(image_folder: Path, tmp_path: Path) -> None:
    _, store = store_of("AutoencoderKL", image_folder, tmp_path / "store")
    assert "deterministic" not in json.loads((store.path / DESCRIPTION).read_text())["request"]
    assert not {"patch_size", "image_size"} & store.request.scaling.keys()


def test_an_older_store_without_the_field_resumes_as_it_is(tiny: LatentStore) -> None:
    older = {key: value for key, value in tiny.request.to_json().items() if key != "deterministic"}
    assert not as_recorded(older, tiny.request).deterministic
    assert as_recorded(tiny.request.to_json(), tiny.request).deterministic


@pytest.mark.parametrize("name", OF_MOMENTS)
def test_formats_of_moments_refuse_a_model_without_a_posterior(name: str, tiny: LatentStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"draws from moments, .* latents only: AutoencoderTiny has no posterior"):
        convert_store(tiny, tmp_path / "out", name)


@pytest.mark.parametrize("name", OF_LATENTS)
def test_formats_of_latents_take_a_model_without_a_posterior(name: str, tiny: LatentStore, tmp_path: Path) -> None:
    convert_store(tiny, tmp_path / "out", name, **OPTIONS.get(name, {}))
    content, read = content_of(tiny.path), READERS[name](tmp_path / "out")
    expect(
        read, content, positions_of(read.names, content), scaled=name in SCALED,
        **TOLERANCE.get(name, DEFAULT_TOLERANCE),
    )  # fmt: skip


def test_a_store_of_packed_latents_is_read_packed_only_with_its_scale(image_folder: Path, tmp_path: Path) -> None:
    model, store = store_of("AutoencoderKLFlux2", image_folder, tmp_path / "store")
    spec = model.latent_spec
    assert store.spec == spec
    assert store.request.scaling["patch_size"] == 2
    latents = LatentDataset(store)[0]["latents"]
    assert latents.shape == (spec.channels, 16, 16)
    scaled = LatentDataset(store, spec=store.spec)[0]["latents"]
    torch.testing.assert_close(scaled, model.scale(latents[None])[0])
    assert scaled.shape == (4 * spec.channels, 8, 8)
    assert len(store.statistics.channel_mean) == spec.channels  # those of the stored latents
    for name in OF_SCALED:
        with pytest.raises(UserError, match=r"pack latents 2x2 .*choose a format of unscaled latents"):
            convert_store(store, tmp_path / name, name)
    convert_store(store, tmp_path / "lightningdit", "lightningdit")
    with pytest.raises(UserError, match="AutoencoderKLFlux2 cannot store scaling_factor"):
        check_store(store, model, "unet")
