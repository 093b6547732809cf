"""Bits per pixel of stored latents, compared with the files of real stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.data import ImageTransform, open_source
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.metrics.storage import Storage
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.latents import encode_images
from ldm_ae.models import Autoencoder, KLAutoencoder
from ldm_ae.quantizers import VQ, ResidualVQ
from tests.evaluation.test_codebook import discrete

SIZE = (16, 24)
SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def scored(model: Autoencoder, sizes: list[tuple[int, int]]) -> dict[str, float]:
    scoring = Scoring([Storage()], Setting(model=model, device=torch.device("cpu")))
    for height, width in sizes:
        images = torch.zeros(1, 3, height, width)
        with torch.no_grad():
            scoring.update(images, images, model.encode(images))
    return scoring.compute()


def bits_of_file(folder: Path, images: int) -> float:
    """Bits of an image in the only shard: all bytes after the header of safetensors and its length."""
    (file,) = folder.rglob("*.safetensors")
    content = file.read_bytes()
    return 8 * (len(content) - 8 - int.from_bytes(content[:8], "little")) / images


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "uint8"])
def test_stored_bits_equal_the_file_of_a_store(dtype: str, photos: Path, tmp_path: Path) -> None:
    model = KLAutoencoder(**SMALL).eval()  # type: ignore[arg-type]
    encode_images(
        model, open_source(photos), tmp_path / "store", transform=ImageTransform(size=SIZE), dtype=dtype,
        content="samples", flips=False, device="cpu",
    )  # fmt: skip
    found = scored(model, [SIZE])
    assert found[f"stored_bits_per_pixel_{dtype}"] * 16 * 24 == pytest.approx(bits_of_file(tmp_path, 3), rel=1e-12)
    assert found["numbers_per_pixel"] == 4 * 8 * 12 / (16 * 24)
    assert "stored_bits_per_pixel_indices" not in found


def test_stored_bits_of_half_precision_follow_from_the_shapes() -> None:
    """4 x 8 x 12 numbers of 16 bits, and 8 numbers of 64 bits about the image."""
    found = scored(KLAutoencoder(**SMALL).eval(), [SIZE])  # type: ignore[arg-type]
    assert found["stored_bits_per_pixel_fp16"] == (384 * 16 + 512) / 384
    assert found["stored_bits_per_pixel_bf16"] == found["stored_bits_per_pixel_fp16"]
    # In eight bits each of the 4 channels also has a step, a lowest value and an error of 32 bits.
    assert found["stored_bits_per_pixel_uint8"] == (384 * 8 + 4 * 96 + 512) / 384


@pytest.mark.parametrize(("levels", "size", "narrow"), [(1, 32, 8), (1, 300, 16), (2, 300, 16)])
def test_stored_indices_equal_the_file_of_a_store(
    levels: int, size: int, narrow: int, photos: Path, tmp_path: Path
) -> None:
    model = discrete(VQ(size, 4) if levels == 1 else ResidualVQ(VQ(size, 4), levels))
    encode_images(
        model, open_source(photos), tmp_path / "store", transform=ImageTransform(size=SIZE), content="lean",
        flips=False, device="cpu",
    )  # fmt: skip
    found = scored(model, [SIZE])["stored_bits_per_pixel_indices"] * 16 * 24
    assert found == pytest.approx(bits_of_file(tmp_path, 3), rel=1e-12)
    assert found == pytest.approx(levels * 8 * 12 * narrow + 512, rel=1e-12)


def test_storage_of_several_sizes_is_the_mean_over_the_images() -> None:
    model = KLAutoencoder(**SMALL).eval()  # type: ignore[arg-type]
    both, small, large = (scored(model, sizes) for sizes in ([(8, 8), (32, 16)], [(8, 8)], [(32, 16)]))
    assert both.keys() == small.keys()
    for key in both:
        assert both[key] == pytest.approx((small[key] + large[key]) / 2, rel=1e-12)
    assert small["stored_bits_per_pixel_uint8"] > large["stored_bits_per_pixel_uint8"]  # the bookkeeping is not less
