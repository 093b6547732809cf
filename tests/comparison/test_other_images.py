"""A comparison of models of images that are not RGB."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_ae
from ldm_ae.comparison import Comparison
from ldm_ae.models import KLAutoencoder
from tests.pictures import smooth_picture

pytestmark = pytest.mark.slow  # a comparison, some seconds


def small(pixels: str, seed: int) -> KLAutoencoder:
    torch.manual_seed(seed)
    return KLAutoencoder(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False, pixels=pixels
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("grey")
    for number in range(4):
        smooth_picture(number, 40, 40).convert("L").save(folder / f"{number}.png")
    models = {"first": small("grey", 1), "second": small("grey", 2), "other": small("rgba", 3)}
    return ldm_ae.compare(
        models, folder, size=32, metrics=["psnr", "ssim", "rate", "storage"], baseline="jpeg", device="cpu",
        out=folder / "out", pictures=2,
    )  # fmt: skip


def test_models_of_other_images_are_listed_with_the_reason(found: Comparison) -> None:
    assert [model.name for model in found.models] == ["first", "second"]
    assert found.failed["other"].startswith(
        "it is for images that are rgba (4 channels in [-1, 1]), and first for grey"
    )
    assert found.protocol["pixels"] == "grey (1 channel in [-1, 1])"


def test_page_shows_grey_as_grey(found: Comparison) -> None:
    assert found.page is not None
    assert found.page.is_file()
    for shown in [*found.originals, *found.models[0].pictures]:
        assert shown.image.shape == (3, 32, 32)
        assert torch.equal(shown.image[0], shown.image[1])
    original = np.asarray(Image.fromarray(found.originals[0].image.permute(1, 2, 0).numpy()))
    assert original.std() > 0


def test_codecs_are_measured_on_grey_images(found: Comparison) -> None:
    (codec,) = found.codecs.results
    assert codec.codec == "jpeg"
    assert codec.scores["psnr"] > 20
