"""VF alignment: its loss, its grid, and its place in checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.features import DINOv2, FeatureNetwork
from ldm_ae.models import GaussianPosterior, KLAutoencoder
from ldm_ae.regularizers import Regularized, Regularizer
from ldm_ae.regularizers.alignment import Alignment
from ldm_ae.regularizers.chain import Chain


class Pooled(FeatureNetwork):
    """Two maps; the last has six channels, and one place for 4x4 pixels."""

    channels = (3, 6)
    identity = "pooled"

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 6, 4, stride=4)
        for number, parameter in enumerate(self.net.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images, self.net(images)]


def prepared(**arguments: float) -> Alignment:
    torch.manual_seed(0)
    alignment = Alignment(features=Pooled(), **arguments)
    alignment.prepare(KLAutoencoder.example("AutoencoderKL"))
    return alignment


def batch(side: int = 4, pixels: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, side, side, generator=generator), torch.rand(3, 3, pixels, pixels, generator=generator)


def term(regularizer: Regularizer, latents: Tensor, pixel_values: Tensor) -> Tensor:
    found = regularizer(
        GaussianPosterior(torch.cat([latents, latents], dim=1)), latents, pixel_values, Draws(range(3), REGULARIZER)
    )
    assert found.latents is latents
    assert found.target is pixel_values
    assert set(found.terms) == {"alignment"}
    return found.terms["alignment"]


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@torch.no_grad()
def by_loops(alignment: Alignment, latents: Tensor, features: Tensor) -> list[float]:
    """Both losses of arXiv 2501.01423, place by place, times the number of latents."""
    assert alignment.projection is not None
    projected = alignment.projection(latents)
    found = []
    for z, zs, f in zip(latents.flatten(2), projected.flatten(2), features.flatten(2), strict=True):
        places = range(z.shape[1])
        points = [max(1 - alignment.cosine_margin - cosine(zs[:, i], f[:, i]), 0) for i in places]
        pairs = [
            max(abs(cosine(z[:, i], z[:, j]) - cosine(f[:, i], f[:, j])) - alignment.distance_margin, 0)
            for i in places for j in places
        ]  # fmt: skip
        found.append((sum(points) / len(points) + sum(pairs) / len(pairs)) * z.numel())
    return found


@pytest.mark.parametrize("margins", [{}, {"cosine_margin": 0.0, "distance_margin": 0.0}])
def test_loss_is_that_of_the_paper(margins: dict[str, float]) -> None:
    alignment = prepared(**margins)
    latents, pixel_values = batch()
    features = alignment.features(pixel_values)[-1]
    assert features.shape == (3, 6, 4, 4)
    expected = by_loops(alignment, latents, features)
    assert (alignment.cosine_margin, alignment.distance_margin) == ((0, 0) if margins else (0.5, 0.25))
    assert term(alignment, latents, pixel_values).tolist() == pytest.approx(expected, rel=1e-5)


def test_latents_within_the_margins_have_no_loss_and_no_gradient() -> None:
    alignment = prepared(cosine_margin=0.5, distance_margin=0.25)
    _, pixel_values = batch()
    features = alignment.features(pixel_values)[-1]
    # Latents from which the projection gives back the features: their own similarities are the features'.
    alignment.projection = nn.Conv2d(6, 6, 1, bias=False)
    nn.init.dirac_(alignment.projection.weight)
    latents = (2 * features + 0.05 * torch.randn_like(features)).requires_grad_()
    found = term(alignment, latents, pixel_values)
    assert found.tolist() == [0, 0, 0]
    assert not torch.autograd.grad(found.sum(), latents)[0].any()
    assert (term(alignment, -latents, pixel_values) > 0).all()


def test_features_are_resized_to_the_latents() -> None:
    """A coarser and a finer grid of the network, of images that are not square."""
    alignment = prepared()
    for size, pixels in (((8, 4), (16, 8)), ((2, 1), (16, 8))):
        latents, pixel_values = torch.randn(2, 4, *size), torch.rand(2, 3, *pixels) * 2 - 1
        features = alignment.features(pixel_values)[-1]
        assert features.shape[-2:] == (4, 2)
        resized = nn.functional.interpolate(features, size=size, mode="bilinear", antialias=True)
        found = alignment(
            GaussianPosterior(torch.cat([latents, latents], dim=1)), latents, pixel_values, Draws((0, 1), REGULARIZER)
        )
        assert found.terms["alignment"].tolist() == pytest.approx(by_loops(alignment, latents, resized), rel=1e-4)


def test_latents_are_compared_with_their_own_target_in_a_chain() -> None:
    """After a regularizer that turns latents and target: the features are those of the turned images."""

    class HalfTurn(Regularizer):
        takes_target = True

        def forward(self, posterior: object, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
            return Regularized(latents.flip(2, 3), pixel_values.flip(2, 3))

    alignment = prepared()
    latents, pixel_values = batch()
    posterior, draws = GaussianPosterior(torch.cat([latents, latents], dim=1)), Draws(range(3), REGULARIZER)
    found = Chain(regularizers=(HalfTurn(), alignment))(posterior, latents, pixel_values, draws)
    features = alignment.features(pixel_values.flip(2, 3))[-1]
    assert found.terms["alignment"].tolist() == pytest.approx(
        by_loops(alignment, latents.flip(2, 3), features), rel=1e-5
    )
    assert torch.equal(found.target, pixel_values.flip(2, 3))


def test_loss_is_computed_in_float32_under_autocast() -> None:
    alignment = prepared(cosine_margin=0.0, distance_margin=0.0)
    latents, pixel_values = batch()
    expected = term(alignment, latents, pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        features = alignment.features(pixel_values)[-1].float()
        found = term(alignment, latents, pixel_values)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(by_loops(alignment, latents, features), rel=1e-5)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=0.02)  # features themselves have 8 bits


def test_projection_is_learned_and_saved_and_the_network_is_not() -> None:
    alignment = prepared()
    assert list(alignment.state_dict()) == ["projection.weight"]
    assert [parameter.shape for parameter in alignment.learning_parameters()] == [(6, 4, 1, 1)]
    latents, pixel_values = batch()
    term(alignment, latents, pixel_values).sum().backward()
    assert alignment.projection is not None
    assert alignment.projection.weight.grad is not None
    assert alignment.projection.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in alignment.features.parameters())
    assert not alignment.train().features.training
    assert alignment.identity == "Alignment with pooled"


def test_invalid_margins_and_other_images_are_refused() -> None:
    for margins in ({"cosine_margin": -0.1}, {"distance_margin": 2.0}):
        with pytest.raises(UserError, match=r"Alignment: expected margins in \[0, 2\), got"):
            Alignment(features=Pooled(), **margins)


def test_example_is_a_small_vision_transformer() -> None:
    assert isinstance(Alignment.example().features, DINOv2)
