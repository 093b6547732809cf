"""What the numbers of an image mean is stated, compared and refused in one place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.data import open_source
from ldm_ae.discriminators import PatchDiscriminator
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.evaluation.metrics.ssim import SSIM
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.images.buckets import BucketTransform, WholeTransform
from ldm_ae.images.pixels import GREY, RGB, PixelSpec, of_channels
from ldm_ae.images.transforms import ImageTransform
from ldm_ae.latents import encode_images, reconstruct_images
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.models import AutoencoderSpec, KLAutoencoder, load_autoencoder
from ldm_ae.training import TrainingConfig
from ldm_ae.training.requirements import check_capabilities
from tests.models.patch_linear import PatchLinearAutoencoder

SMALL = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False}


def test_rgb_spec_has_three_channels_in_minus_one_to_one() -> None:
    assert (RGB.channels, RGB.meaning, RGB.range, RGB.mode) == (3, "rgb", (-1.0, 1.0), "RGB")
    assert (str(RGB), RGB.words) == ("rgb (3 channels in [-1, 1])", "RGB in [-1, 1]")
    assert of_channels(3) == RGB
    assert RGB.require_supported("a model") is RGB
    with pytest.raises(AttributeError):
        RGB.channels = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (of_channels(1), r"unknown \(1 channel in \[-1, 1\]\)"),
        (of_channels(4), r"unknown \(4 channels in \[-1, 1\]\)"),
        (PixelSpec(channels=3, meaning="rgb", range=(0.0, 1.0)), r"rgb \(3 channels in \[0, 1\]\)"),
        (PixelSpec(channels=4, meaning="rgb"), r"rgb \(4 channels in \[-1, 1\]\)"),
    ],
)
def test_unsupported_specs_are_refused_with_the_supported_ones(pixels: PixelSpec, words: str) -> None:
    for refused in (lambda: pixels.require_supported("m"), lambda: pixels.mode):
        with pytest.raises(UserError, match=rf"images are {words}; supported are rgb .*, grey .*"):
            refused()


def test_invalid_specs_are_refused() -> None:
    with pytest.raises(UserError, match="channels must be a whole number above 0, got 0"):
        PixelSpec(channels=0, meaning="rgb")
    with pytest.raises(UserError, match="range must go from a smaller to a larger value"):
        PixelSpec(channels=3, meaning="rgb", range=(1.0, 1.0))


def test_image_shapes_are_validated() -> None:
    RGB.require_images(torch.zeros(2, 3, 4, 4))
    for shape in ((3, 4, 4), (2, 1, 4, 4)):
        with pytest.raises(UserError, match=r"pixel_values must be \(B, 3, H, W\), got"):
            RGB.require_images(torch.zeros(shape))


def test_transforms_declare_their_pixel_spec() -> None:
    whole = WholeTransform(None, multiple=4)
    assert ImageTransform(size=8).pixels == BucketTransform(sizes=[(8, 8)]).pixels == whole.pixels == RGB


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
@pytest.mark.parametrize(
    ("taken", "given", "words"),
    [
        (1, 1, "images are unknown (1 channel in [-1, 1]); supported are rgb"),
        (3, 4, "in_channels 3 differ from out_channels 4"),
    ],
)
def test_model_with_unsupported_channels_is_refused_on_opening(
    tmp_path: Path, kind: str, taken: int, given: int, words: str
) -> None:
    net = getattr(diffusers, kind)(in_channels=taken, out_channels=given, block_out_channels=(8,), norm_num_groups=4)
    net.save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        load_autoencoder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: {kind}: {words}")
    assert len(str(error.value).splitlines()) == 1


def test_network_with_another_pixel_spec_is_refused_by_name() -> None:
    class GreyDiscriminator(PatchDiscriminator):
        pixels = GREY

    discriminator = GreyDiscriminator(n_layers=1, ndf=4, norm="none")
    assert discriminator(torch.zeros(1, 1, 16, 16)).shape[1] == 1
    model = KLAutoencoder(**SMALL)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\(GreyDiscriminator\) requires images that are grey .* rgb"):
        check_capabilities(model, ObjectiveConfig(), discriminator, TrainingConfig(max_steps=1))


def test_metric_with_another_pixel_spec_is_skipped_with_a_reason() -> None:
    metric = PSNR()
    metric.pixels = GREY
    model = KLAutoencoder(**SMALL)  # type: ignore[arg-type]
    scoring = Scoring([metric, SSIM()], Setting(model=model, device=torch.device("cpu")))
    assert [type(running) for running in scoring.running] == [SSIM]
    assert scoring.skipped["psnr"].startswith("PSNR requires images that are grey (1 channel")


class Grey(PatchLinearAutoencoder):
    @property
    def spec(self) -> AutoencoderSpec:
        return replace(super().spec, pixels=GREY)


def test_incompatible_images_are_refused_before_any_work(image_folder: Path, tmp_path: Path) -> None:
    source, transform = open_source(image_folder), ImageTransform(size=16)
    for command in (encode_images, reconstruct_images):
        with pytest.raises(UserError, match=r"the transform requires images that are rgb .* the model uses grey"):
            command(Grey(), source, tmp_path / "out", transform=transform, device="cpu")
    assert not (tmp_path / "out").exists()
