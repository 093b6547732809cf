"""Networks that cannot take the images are refused before the first step, whenever they would have started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import (
    AidedDiscriminator,
    DiffAug,
    MultiScaleDiscriminator,
    PatchDiscriminator,
    ProjectedDiscriminator,
    StyleGAN2Discriminator,
)
from ldm_ae.losses import L1, LPIPS, ObjectiveConfig
from ldm_ae.models import Autoencoder, KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import EMAVQ, FSQ, LFQ, VQ, CodebookCare, ResidualVQ
from ldm_ae.regularizers import Identity
from ldm_ae.training import TrainingConfig
from ldm_ae.training.run import build_config, parse_config, train
from ldm_ae.training.sizes import check_sizes
from tests.pictures import smooth_picture

SMALL = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def check(model: Autoencoder, resolution: int, *, validation: bool = False, batch_size: int = 2, weights=None, **parts):
    objective = ObjectiveConfig(
        reconstruction=L1(), perceptual=parts.get("perceptual"), regularization_weights=weights or {},
        discriminator_start=parts.get("start", 0),
    )  # fmt: skip
    training = TrainingConfig(batch_size=batch_size, max_steps=100)
    check_sizes(
        model, parts.get("regularizer", Identity()), objective, parts.get("discriminator"), training,
        sizes=parts.get("sizes", [(resolution, resolution)]), resolution=resolution, validation=validation,
    )  # fmt: skip


@pytest.mark.slow
def test_size_check_includes_a_discriminator_that_starts_later(tiny_model: KLAutoencoder) -> None:
    parts = {"discriminator": PatchDiscriminator(ndf=8), "start": 99}
    check(tiny_model, 24, **parts)
    with pytest.raises(
        UserError,
        match=r"the discriminator \(PatchDiscriminator\) does not accept images of 8x8 in batches of 2: "
        r"the minimum size is 24x24\. Raise data\.resolution, or give it fewer layers",
    ):
        check(tiny_model, 8, **parts)
    # Batch normalization needs more than one number for a channel, which batches of one may not have.
    with pytest.raises(
        UserError,
        match=r"does not accept images of 16x16 in batches of 1: the minimum size is 24x24\. Raise",
    ):
        check(tiny_model, 16, batch_size=1, **parts)
    check(tiny_model, 8, **parts | {"start": 100})  # which never starts
    check(tiny_model, 8, discriminator=PatchDiscriminator(ndf=8, n_layers=1, norm="none"))


@pytest.mark.slow
def test_size_check_includes_every_kind_of_discriminator(tiny_model: KLAutoencoder) -> None:
    stylegan2 = StyleGAN2Discriminator.example()
    check(tiny_model, 64, discriminator=AidedDiscriminator(stylegan2, [DiffAug()]))
    for side in (32, 128):
        words = (
            rf"the discriminator \(StyleGAN2Discriminator\) does not accept images of {side}x{side} in batches of "
            rf"2: it takes images of 64x64, got {side}x{side}; set its image_size, or take another discriminator"
        )
        with pytest.raises(UserError, match=words):
            check(tiny_model, side, discriminator=AidedDiscriminator(stylegan2, [DiffAug()]))
    with pytest.raises(UserError, match=r"the minimum size is 24x24\. Raise data\.resolution, or give it fewer layers"):
        check(tiny_model, 16, discriminator=MultiScaleDiscriminator(scales=2, n_layers=2, ndf=4))
    check(tiny_model, 8, discriminator=ProjectedDiscriminator.example())  # which resizes images


@pytest.mark.slow
def test_size_check_includes_the_perceptual_network_and_metrics(tiny_model: KLAutoencoder) -> None:
    perceptual = LPIPS(net="alex", pretrained=False)
    check(tiny_model, 32, perceptual=perceptual)
    words = r"\(lpips_alex\) does not accept images of 16x16 in batches of 2: the minimum size is 32x32\."
    with pytest.raises(UserError, match=words):
        check(tiny_model, 16, perceptual=perceptual)
    check(tiny_model, 64, validation=True)
    with pytest.raises(UserError, match=r"validation cannot score images of 4x4: .*set data\.validation_images to 0"):
        check(tiny_model, 4, validation=True)
    check(tiny_model, 4)


@pytest.mark.parametrize(
    "quantizer",
    [VQ(8, 4), EMAVQ(8, 4, care=CodebookCare(kmeans_iterations=2)), FSQ((5, 5)), LFQ(4), ResidualVQ(VQ(8, 4), 2)],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_size_check_does_not_change_discrete_models(quantizer) -> None:
    model = VQAutoencoder(quantizer=quantizer, **SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    check(model, 16)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(UserError, match=r"expected terms of .*, got 'kl'"):
        check(model, 16, weights={"kl": 1.0})


@pytest.mark.slow
def test_too_small_images_are_refused_before_writing(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        smooth_picture(i, 8, 8).save(tmp_path / f"images/{i}.png")
    arguments = [
        "--out", str(tmp_path / "run"), "--data.train", str(tmp_path / "images"), "--data.resolution", "8",
        "--data.validation_images", "0", "--data.workers", "0", "--model", "ldm_ae.models.KLAutoencoder",
        "--model.init_args.block_out_channels", "[8,8]", "--model.init_args.norm_num_groups", "4",
        "--model.init_args.layers_per_block", "1", "--training.precision", "no", "--training.batch_size", "2",
        "--training.max_steps", "2", "--objective.discriminator_start", "1", "--training.trackers", "[]",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"the discriminator .* does not accept images of 8x8"):
        train([*arguments, "--discriminator", "ldm_ae.discriminators.PatchDiscriminator"])
    assert not list((tmp_path / "run").rglob("*"))
    build_config(parse_config(arguments))  # without one it is a run
