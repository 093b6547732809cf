"""Losses of images that are not RGB: every loss on each kind, and values that can be worked out."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.images.missing import known
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.images.views import Bands, Composite, Triples, opaque
from ldm_ae.losses import (
    L1,
    L2,
    PERCEPTUAL_LOSSES,
    RECONSTRUCTION_LOSSES,
    AlphaAware,
    Charbonnier,
    Likelihood,
    Objective,
    ObjectiveConfig,
    OpponentL1,
    PerceptualLoss,
    ReconstructionLoss,
    SSIMDistance,
    WeightedReconstruction,
    WeightedSum,
)
from tests.channels import FIVE, GAPS, PLAIN_FIVE, SPECS, images
from tests.training.common import small_perceptual

OF_TRANSFORMERS = ("DeepFeatures", "GramDistance", "LogitDistance", "WeightedSum")
every_spec = pytest.mark.parametrize("pixels", SPECS.values(), ids=SPECS)


def error(pixels: PixelSpec, pair: tuple[Tensor, Tensor], **config: object) -> float:
    objective = Objective(ObjectiveConfig(**config), pixels)  # type: ignore[arg-type]
    return float(objective.reconstruction(*pair, draws=Draws(range(len(pair[0])), "view")).nll)


def reconstruction(cls: type[ReconstructionLoss]) -> ReconstructionLoss:
    return cls(errors=[L1(), L2()]) if cls is WeightedReconstruction else cls()  # type: ignore[call-arg]


@every_spec
@pytest.mark.parametrize("cls", RECONSTRUCTION_LOSSES.classes())
def test_every_reconstruction_loss_takes_the_images_or_refuses_them_in_one_line(
    cls: type[ReconstructionLoss], pixels: PixelSpec
) -> None:
    loss, (reconstructions, pixel_values) = reconstruction(cls), images(pixels)
    needed = {AlphaAware: RGBA, OpponentL1: RGB}.get(cls, pixels)
    if pixels != needed:
        words = rf"^{cls.__name__} needs {needed.meaning} images, but the model uses .*; choose l1"
        with pytest.raises(UserError, match=words):
            loss.check(pixels)
        return
    loss.check(pixels)
    errors = loss(reconstructions, pixel_values)
    assert errors.shape == pixel_values.shape
    is_density = isinstance(loss, Likelihood) and not loss.is_discrete
    assert is_density or errors.min() >= 0
    assert errors.mean() > loss(pixel_values, pixel_values).mean()


@pytest.fixture
def perceptual(request: pytest.FixtureRequest) -> PerceptualLoss:
    cls: type[PerceptualLoss] = request.param
    if cls.__name__ == "ShiftTolerantLPIPS" and importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("the wheel stlpips-pytorch is not installed")
    if cls.__name__ in OF_TRANSFORMERS:
        pytest.importorskip("transformers")
    return cls.example()


@every_spec
@pytest.mark.parametrize("perceptual", PERCEPTUAL_LOSSES.classes(), indirect=True, ids=lambda cls: cls.__name__)
def test_every_perceptual_loss_has_a_gradient_in_each_channel(perceptual: PerceptualLoss, pixels: PixelSpec) -> None:
    size = 176 if perceptual.name.startswith("ms_ssim") else 64
    reconstructions, pixel_values = images(pixels, size=size)
    reconstructions.requires_grad_()
    view = Triples(triples=6) if pixels is FIVE and perceptual.pixels is not None else None
    objective = Objective(ObjectiveConfig(perceptual=perceptual, view=view), pixels)
    terms = objective.reconstruction(reconstructions, pixel_values, draws=Draws([1, 2], "view"))
    assert terms.perceptual_loss is not None
    (gradient,) = torch.autograd.grad(terms.perceptual_loss, reconstructions)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all()


def test_grey_view_of_a_grey_image_has_the_loss_of_the_repeated_image() -> None:
    pair = images(GREY)
    repeated = tuple(each.repeat(1, 3, 1, 1) for each in pair)
    config = {"perceptual": small_perceptual()}
    assert error(GREY, pair, **config) == pytest.approx(error(RGB, repeated, **config), rel=1e-6)  # type: ignore[arg-type]


def test_bands_have_the_loss_of_their_rgb_image() -> None:
    pair, network = images(FIVE), small_perceptual()
    found = Objective(ObjectiveConfig(perceptual=network, view=Bands(bands=["nir", "red", "green"])), FIVE)
    shown = [each[:, [3, 2, 1]] for each in pair]
    assert torch.equal(found.reconstruction(*pair).perceptual_loss, network(*shown).mean())  # type: ignore[arg-type]


def test_losses_over_several_views_are_their_mean() -> None:
    pair, network = images(RGBA), small_perceptual()
    names = ("black", "white", "checker")
    expected = torch.stack([network(*(opaque(each, name) for each in pair)) for name in names]).mean()
    found = Objective(ObjectiveConfig(perceptual=network), RGBA).reconstruction(*pair).perceptual_loss
    torch.testing.assert_close(found, expected)


def test_training_compares_each_sample_over_one_background() -> None:
    pair, network = images(RGBA, count=6), small_perceptual()
    objective = Objective(ObjectiveConfig(perceptual=network), RGBA)
    found = objective.reconstruction(*pair, draws=Draws(range(6), "view")).perceptual_loss
    chosen = Draws(range(6), "view").integers(0, 3).tolist()
    names = [("black", "white", "checker")[number] for number in chosen]
    assert len({*names}) > 1
    rows = [network(*(opaque(each[i : i + 1], name) for each in pair)) for i, name in enumerate(names)]
    torch.testing.assert_close(found, torch.cat(rows).mean())


def test_rgb_is_not_changed_by_a_view() -> None:
    pair, network = images(RGB), small_perceptual()
    given = Objective(ObjectiveConfig(perceptual=network, view=Triples()), RGB)
    assert given.view is None
    terms = given.reconstruction(*pair, draws=Draws([1, 2], "view"))
    expected = L1()(*pair).mean() + network(*pair).mean()
    assert torch.equal(terms.nll, expected)


def test_perceptual_network_without_a_view_is_refused_in_one_line() -> None:
    words = r"objective\.perceptual \(small\) requires images that are rgb .* Set objective\.view to bands or triples"
    with pytest.raises(UserError, match=words) as refused:
        Objective(ObjectiveConfig(perceptual=small_perceptual()), PLAIN_FIVE)
    assert len(str(refused.value).splitlines()) == 1
    assert Objective(ObjectiveConfig(perceptual=SSIMDistance()), PLAIN_FIVE).view is None


def test_a_sum_is_as_strict_as_its_strictest_loss() -> None:
    assert WeightedSum(losses=[SSIMDistance()]).pixels is None
    assert WeightedSum(losses=[SSIMDistance(), small_perceptual()]).pixels == RGB


def hidden_changed() -> tuple[Tensor, Tensor, Tensor]:
    """Return reconstructions, images and reconstructions of another hidden colour; the left half is transparent."""
    reconstructions, pixel_values = images(RGBA)
    pixel_values[:, 3, :, :16] = reconstructions[:, 3, :, :16] = -1.0
    changed = reconstructions.clone()
    changed[:, :3, :, :16] = torch.rand(2, 3, 32, 16)
    return reconstructions, pixel_values, changed


@pytest.mark.parametrize("element", [L1(), L2(), Charbonnier()])
def test_hidden_colour_does_not_count(element: ReconstructionLoss) -> None:
    reconstructions, pixel_values, changed = hidden_changed()
    loss = AlphaAware(reconstruction=element)
    assert torch.equal(loss(reconstructions, pixel_values), loss(changed, pixel_values))
    assert not torch.equal(element(reconstructions, pixel_values), element(changed, pixel_values))
    config = {"reconstruction": loss, "perceptual": small_perceptual()}
    assert error(RGBA, (reconstructions, pixel_values), **config) == error(RGBA, (changed, pixel_values), **config)
    config = {"reconstruction": loss, "perceptual": SSIMDistance()}
    assert error(RGBA, (reconstructions, pixel_values), **config) == error(RGBA, (changed, pixel_values), **config)
    changed.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(changed, pixel_values).sum(), changed)
    assert not gradient[:, :3, :, :16].any()
    assert gradient[:, :3, :, 16:].any()


def test_alpha_aware_error_is_that_of_both_composites_and_alpha() -> None:
    pixel_values = torch.tensor([0.5, 0.0, -0.5, 0.0]).view(1, 4, 1, 1)  # opacity 1/2
    reconstructions = torch.tensor([0.1, 0.0, -0.5, 0.4]).view(1, 4, 1, 1)  # opacity 0.7
    found = AlphaAware(reconstruction=L1(), alpha_weight=3.0)(reconstructions, pixel_values).flatten()
    # Red over black: 0.25 - 0.5 = -0.25 against 0.07 - 0.3 = -0.23; over white: 0.75 against 0.37.
    torch.testing.assert_close(found[0], torch.tensor((0.02 + 0.38) / 2))
    torch.testing.assert_close(found[1], torch.tensor(0.2))  # the difference of opacity over both
    torch.testing.assert_close(found[3], torch.tensor(3 * 0.4))


def test_alpha_aware_error_of_opaque_images_is_that_of_colours() -> None:
    reconstructions, pixel_values = images(RGBA)
    pixel_values[:, 3] = reconstructions[:, 3] = 1.0
    found = AlphaAware(reconstruction=L2())(reconstructions, pixel_values)
    torch.testing.assert_close(found[:, :3], L2()(reconstructions, pixel_values)[:, :3])
    assert not found[:, 3].any()
    with pytest.raises(UserError, match="alpha_weight of at least 0"):
        AlphaAware(alpha_weight=-1.0)


@pytest.mark.parametrize("perceptual", [None, SSIMDistance()], ids=["none", "ssim"])
@pytest.mark.parametrize("reduction", ["ldm", "mean"])
def test_missing_data_does_not_count(perceptual: PerceptualLoss | None, reduction: str) -> None:
    reconstructions, pixel_values = images(GAPS)
    changed = torch.where(known(pixel_values), reconstructions, 0.7)
    config = {"perceptual": perceptual, "reduction": reduction}
    found = error(GAPS, (reconstructions, pixel_values), **config)
    assert found == error(GAPS, (changed, pixel_values), **config)
    reconstructions.requires_grad_()
    objective = Objective(ObjectiveConfig(**config), GAPS)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(objective.reconstruction(reconstructions, pixel_values).nll, reconstructions)
    assert torch.equal(gradient != 0, known(pixel_values))


def test_error_with_missing_data_is_the_mean_over_known_data() -> None:
    reconstructions, pixel_values = images(GAPS)
    expected = (reconstructions - pixel_values).abs()[known(pixel_values)].mean()  # both images have equal parts
    assert error(GAPS, (reconstructions, pixel_values)) == pytest.approx(float(expected), rel=1e-6)
    in_sum = error(GAPS, (reconstructions, pixel_values), reduction="ldm")
    assert in_sum == pytest.approx(float(expected) * 2 * 32 * 32, rel=1e-6)


def test_views_of_the_configuration_are_bound_to_the_images() -> None:
    composite = Composite(backgrounds=["white"])
    objective = Objective(ObjectiveConfig(perceptual=small_perceptual(), view=composite), RGBA)
    assert objective.view is not None
    assert objective.view.words == "composited over white"
    assert composite.pixels is None
    with pytest.raises(UserError, match="Composite needs rgba images"):
        Objective(ObjectiveConfig(perceptual=small_perceptual(), view=composite), GREY)
