"""`import ldm_ae` with images that are not RGB in 8 bits: load, encode, decode and score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ldm_ae
from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.png16 import encode_png16
from ldm_ae.models import KLAutoencoder
from tests.data.medical_files import dicom

GREY16 = {"meaning": "grey", "bits": 16}


@pytest.fixture(scope="module")
def model() -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(
        pixels=GREY16, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    ).eval()


@pytest.fixture
def scan() -> np.ndarray:
    return np.linspace(0, 65535, 32 * 40).astype(np.uint16).reshape(32, 40)


def test_image_is_loaded_for_a_models_images(model: KLAutoencoder, scan: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(encode_png16(scan[None]))
    (tmp_path / "scan.dcm").write_bytes(dicom(scan))
    expected = torch.from_numpy(scan / 32767.5 - 1).float()[None, None]
    for image in (tmp_path / "scan.png", str(tmp_path / "scan.dcm"), scan):
        for pixels in (model, model.pixel_spec, GREY16):
            assert torch.allclose(ldm_ae.load_image(image, pixels=pixels), expected, atol=1e-6)
    assert ldm_ae.load_image(scan, size=16, pixels=model).shape == (1, 1, 16, 16)


def test_scores_are_those_of_evaluate(model: KLAutoencoder, scan: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/scan.png").write_bytes(encode_png16(scan[None]))
    image = ldm_ae.load_image(scan, size=32, pixels=model)
    decoded = model.decode_to_arrays(model.encode_images(image))
    stored = model.pixel_spec.denormalize(image[0]).numpy()
    found = ldm_ae.metrics(stored, decoded, pixels=model, metrics=("psnr", "ssim"))
    report = ldm_ae.evaluate(model, tmp_path / "images", size=32, metrics=("psnr", "ssim"), device="cpu")
    assert found == pytest.approx({name: report.metrics[name] for name in found}, rel=1e-5)
    error = (decoded[0].astype(float) - stored) / 65535
    assert found["psnr"] == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-3)


def test_networks_of_rgb_see_the_chosen_view() -> None:
    bands = {"channels": 4, "names": ["nir", "red", "green", "blue"]}
    draw = np.random.default_rng(0)
    one, other = (draw.integers(0, 255, (4, 32, 32)).astype(np.uint8) for _ in range(2))
    options: dict[str, Any] = {"pixels": bands, "metrics": "perceptual", "device": "cpu"}
    shown = ldm_ae.metrics(one, other, view="bands:nir,red,green", **options)
    rgb = ldm_ae.metrics(one[:3].transpose(1, 2, 0), other[:3].transpose(1, 2, 0), metrics="perceptual", device="cpu")
    assert shown == pytest.approx(rgb, rel=1e-5)
    options["pixels"] = {"channels": 4}
    with pytest.raises(UserError, match=r"stlpips_vgg cannot be computed: .* to bands or triples"):
        ldm_ae.metrics(one, other, **options)


def test_mistakes_are_refused_in_one_line(model: KLAutoencoder, scan: np.ndarray, tmp_path: Path) -> None:
    for call, why in [
        (lambda: ldm_ae.load_image(scan, size=16), "path must be a file, got ndarray"),
        (lambda: ldm_ae.load_image("a.png"), "size is missing"),
        (lambda: ldm_ae.load_image(tmp_path / "none.png", pixels=model), "No such file"),
        (
            lambda: ldm_ae.load_image(scan.astype(np.uint8), pixels=model),
            "of type uint8, and the images are grey",
        ),
        (lambda: ldm_ae.load_image([scan], pixels=model), "path must be a file or an array, got list"),
        (lambda: ldm_ae.load_image(scan, pixels="gray"), "meaning is 'gray'; it must be one of"),
        (lambda: ldm_ae.metrics(scan, scan, value_range=(0, 1), pixels=model), "value_range has no effect"),
        (lambda: ldm_ae.metrics(scan, scan[:16], pixels=PixelSpec(channels=1, meaning="grey", bits=16)), "one size"),
    ]:
        with pytest.raises(UserError, match=why) as error:
            call()
        assert len(str(error.value).splitlines()) == 1
