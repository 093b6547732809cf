"""Stores and reconstructions of images other than RGB: encode, verify, decode, and what other formats refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.sample_files import SampleDecoding
from ldm_ae.images.writing import encode_image, kind_of_files
from ldm_ae.interop.ldm import ldm_config
from ldm_ae.latents import LatentStore, decode_store, encode_images, reconstruct_images, verify_store
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.models import KLAutoencoder, model_hash

SPECS: dict[str, Any] = {
    "grey16": {"meaning": "grey", "bits": 16, "high": 4095, "missing": 0},
    "rgba": "rgba",
    "5 channels": {"channels": 5, "bits": 0, "low": -1, "high": 3, "missing": "nan"},
}


class Case(NamedTuple):
    model: KLAutoencoder
    folder: Path
    store: Path
    transform: ImageTransform


@pytest.fixture(scope="module", params=list(SPECS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    model = KLAutoencoder(
        pixels=SPECS[request.param], block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    pixels, place = model.pixel_spec, tmp_path_factory.mktemp("other")
    folder = place / "images"
    folder.mkdir()
    for number in range(3):
        stored = pixels.denormalize(torch.rand(pixels.channels, 16, 20) * 1.8 - 0.9).numpy()
        if pixels.missing is not None:
            stored[0, :3, :4] = pixels.missing
        kind = kind_of_files(pixels)
        (folder / f"{number}.{kind}").write_bytes(encode_image(stored, pixels, kind))
    transform = ImageTransform(size=16, resize="none", pixels=pixels)
    encode_images(model, open_source(folder), place / "store", transform=transform, batch_size=2, device="cpu")
    return Case(model, folder, place / "store", transform)


def test_store_is_valid_and_names_its_images(case: Case) -> None:
    store = LatentStore(case.store)
    assert PixelSpec.from_json(store.request.transform["pixels"]) == case.model.pixel_spec
    assert verify_store(case.store) == []


def test_store_is_decoded_to_files_of_the_same_samples(case: Case, tmp_path: Path) -> None:
    pixels = case.model.pixel_spec
    assert decode_store(case.model, case.store, tmp_path / "out", device="cpu") == 3
    name = f"0.{kind_of_files(pixels)}"
    found = SampleDecoding(pixels=pixels)((tmp_path / "out" / name).read_bytes()).image
    original = case.transform(case.transform.decode((case.folder / name).read_bytes()).image).pixel_values
    with torch.no_grad():
        posterior = case.model.encode(original[None])
        assert posterior.mode().shape == (1, 4, 8, 8)
    assert found.planes.dtype == pixels.dtype
    assert found.planes.shape == (pixels.channels, 16, 16)


def test_reconstructions_are_denormalized_and_keep_missing_data(case: Case, tmp_path: Path) -> None:
    pixels = case.model.pixel_spec
    reconstruct_images(case.model, open_source(case.folder), tmp_path / "out", transform=case.transform, device="cpu")
    name = f"1.{kind_of_files(pixels)}"
    found = SampleDecoding(pixels=pixels)((tmp_path / "out" / name).read_bytes()).image
    original = case.transform(case.transform.decode((case.folder / name).read_bytes()).image).pixel_values
    with torch.no_grad():
        expected = pixels.denormalize(case.model.decode(case.model.encode(original[None]).mode())[0]).double().numpy()
    if pixels.missing is not None:
        assert not found.present[0, :3, :2].any()  # two columns are cropped off
        expected[~found.present] = pixels.missing
    difference = np.abs(np.nan_to_num(found.planes.astype(np.float64)) - np.nan_to_num(expected))
    assert difference.max() <= (1 if pixels.bits else 1e-5)


def test_model_of_other_stored_values_does_not_decode_the_store(case: Case, tmp_path: Path) -> None:
    case.model.save_pretrained(tmp_path / "model")
    changed = {**case.model.pixel_spec.to_json(), "high": 200 if case.model.pixel_spec.bits else 2.5}
    other = KLAutoencoder(pretrained=str(tmp_path / "model"), pixels=changed)
    with pytest.raises(UserError, match=r"store requires images that are .*, but the model uses .* to (200|2\.5)"):
        decode_store(other, case.store, tmp_path / "out", device="cpu")
    same = KLAutoencoder(pretrained=str(tmp_path / "model"))
    assert model_hash(other) != model_hash(same) == model_hash(case.model) == LatentStore(case.store).request.model_hash
    with pytest.raises(UserError, match="store") as error:  # nor does it add to the store
        encode_images(other, open_source(case.folder), case.store, transform=ImageTransform(
            size=16, resize="none", pixels=other.pixel_spec), batch_size=2, device="cpu")  # fmt: skip
    assert len(str(error.value).splitlines()) <= 2


def test_formats_that_hold_rgb_images_refuse_in_one_line(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads images of RGB in 8 bits beside the latents; choose") as error:
        convert_store(case.store, tmp_path / "repa", "repa", images=open_source(case.folder))
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="format ldm: CompVis's code reads RGB of 8 bits, this model's images are"):
        ldm_config(case.model)


def test_arrays_in_memory_are_encoded_and_decoded(case: Case) -> None:
    pixels = case.model.pixel_spec
    (file,) = case.folder.glob("2.*")
    planes = SampleDecoding(pixels=pixels)(file.read_bytes()).image.planes
    latents = case.model.encode_images([planes, str(file)], size=16)
    assert torch.equal(latents[0], latents[1])
    arrays = case.model.decode_to_arrays(latents)
    assert (arrays[0].shape, arrays[0].dtype) == ((pixels.channels, 16, 16), pixels.dtype)
    if pixels.meaning == "rgba":
        assert case.model.decode_to_pil(latents)[0].mode == "RGBA"
    else:
        with pytest.raises(UserError, match="call decode_to_arrays"):
            case.model.decode_to_pil(latents)
    with pytest.raises(UserError, match="the images are"):
        case.model.encode_images(np.zeros((16, 16, 7), np.float32))
