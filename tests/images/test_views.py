"""Views of images that are not RGB, with values that can be worked out."""

from __future__ import annotations

import pytest
import torch

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import GREY, RGB, RGBA
from ldm_ae.images.views import VIEWS, Bands, Composite, Repeated, Triples, View, default_view, parse_view, shown_view
from ldm_ae.images.views import view_for as view_of
from ldm_ae.images.views.composite import background, opaque
from tests.channels import FIVE, GAPS, PLAIN_FIVE, images

FITTING = {"Repeated": GREY, "Composite": RGBA, "Bands": FIVE, "Triples": FIVE}


@pytest.mark.parametrize("cls", VIEWS.classes())
def test_every_view_gives_rgb_images_of_each_image_with_a_gradient(cls: type[View]) -> None:
    view = cls.example().of(FITTING[cls.__name__])
    reconstructions, pixel_values = images(FITTING[cls.__name__])
    reconstructions.requires_grad_()
    for draws in (None, Draws([5, 9], "view")):
        shown = view(reconstructions, pixel_values, draws=draws)
        assert [tuple(each.shape[1:]) for each in shown] == [(3, 32, 32)] * 2
        assert len(shown[0]) % 2 == 0
        (gradient,) = torch.autograd.grad(shown[0].sum(), reconstructions)
        assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert len(view(pixel_values)[0]) == 2 * view.count
    assert view.single(pixel_values).shape == view.single(pixel_values, Draws([5, 9], "view")).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("cls", VIEWS.classes())
def test_views_of_one_image_do_not_depend_on_the_batch(cls: type[View]) -> None:
    view, pixel_values = cls.example().of(FITTING[cls.__name__]), images(FITTING[cls.__name__])[1]
    both, second = view(pixel_values)[0], view(pixel_values[1:])[0]
    assert torch.equal(both[len(both) // 2 :], second)
    both = view(pixel_values, draws=Draws([5, 9], "view"))[0]
    second = view(pixel_values[1:], draws=Draws([9], "view"))[0]
    assert torch.equal(both[len(both) // 2 :], second)


@pytest.mark.parametrize("cls", VIEWS.classes())
def test_reconstruction_and_image_are_seen_alike(cls: type[View]) -> None:
    pixel_values = images(FITTING[cls.__name__])[1]
    view = cls.example().of(FITTING[cls.__name__])
    first, second = view(pixel_values, pixel_values.clone(), draws=Draws([5, 9], "view"))
    assert torch.equal(first, second)
    assert torch.equal(first, view(pixel_values, draws=Draws([5, 9], "view"))[0])


def test_grey_is_repeated() -> None:
    pixel_values = images(GREY)[1]
    assert torch.equal(Repeated().of(GREY).single(pixel_values), pixel_values.repeat(1, 3, 1, 1))


def test_composite_is_the_convex_combination_of_colour_and_background() -> None:
    pixel_values = torch.tensor([0.2, -0.4, 0.6, 0.5]).view(1, 4, 1, 1).expand(1, 4, 20, 20)  # opacity 0.75
    black, white, checker = Composite().of(RGBA)(pixel_values)[0]
    colours = torch.tensor([0.2, -0.4, 0.6])
    for shown, behind in ((black[:, 0, 0], -1.0), (white[:, 0, 0], 1.0), (checker[:, 0, 0], 153 / 127.5 - 1)):
        torch.testing.assert_close(shown, 0.75 * colours + 0.25 * behind)
    torch.testing.assert_close(checker[:, 0, 8], 0.75 * colours + 0.25 * (102 / 127.5 - 1))  # the next square


def test_opaque_images_are_their_colours_and_transparent_ones_the_background() -> None:
    pixel_values = images(RGBA)[1]
    for name in ("black", "white", "checker"):
        pixel_values[:, 3] = 1.0
        assert torch.equal(opaque(pixel_values, name), pixel_values[:, :3])
        pixel_values[:, 3] = -1.0
        behind = background(name, pixel_values).expand(2, 3, -1, -1)
        assert torch.equal(opaque(pixel_values, name), behind)


def test_training_draws_one_background_for_each_sample() -> None:
    pixel_values = torch.full((64, 4, 8, 8), -1.0)
    shown = Composite(backgrounds=["black", "white"]).of(RGBA)(pixel_values, draws=Draws(range(64), "view"))[0]
    assert sorted(shown.unique().tolist()) == [-1.0, 1.0]
    assert 16 < int((shown[:, 0, 0, 0] > 0).sum()) < 48


def test_bands_are_chosen_by_name() -> None:
    pixel_values = images(FIVE)[1]
    assert torch.equal(Bands().of(FIVE).single(pixel_values), pixel_values[:, [2, 1, 0]])
    assert torch.equal(Bands(bands=["nir", "red", "red"]).of(FIVE).single(pixel_values), pixel_values[:, [3, 2, 2]])


def test_triples_have_different_channels_and_are_drawn_for_each_sample() -> None:
    numbered = torch.arange(5.0).view(1, 5, 1, 1).expand(40, 5, 2, 2)
    view = Triples(triples=3).of(PLAIN_FIVE)
    fixed = view(numbered)[0][:, :, 0, 0].view(40, 3, 3)
    assert (fixed == fixed[0]).all()
    drawn = view(numbered, draws=Draws(range(40), "view"))[0][:, :, 0, 0].view(40, 3, 3)
    assert len(drawn.unique(dim=0)) > 30
    for triples in (fixed, drawn):
        assert all(len(set(triple)) == 3 for image in triples.tolist() for triple in image)
    assert not torch.equal(Triples(triples=3, seed=1).of(PLAIN_FIVE).fixed(), view.fixed())


def test_default_view_depends_on_the_meaning() -> None:
    assert default_view(RGB) is None
    assert isinstance(default_view(GREY), Repeated)
    assert isinstance(default_view(RGBA), Composite)
    assert isinstance(default_view(FIVE), Bands)
    assert default_view(PLAIN_FIVE) is None
    assert default_view(GAPS) is None


def test_people_see_one_rgb_image_of_any_images() -> None:
    assert shown_view(RGB) is None
    for pixels in (GREY, RGBA, FIVE, PLAIN_FIVE, GAPS):
        view = shown_view(pixels)
        assert view is not None
        assert view.count == 1
        assert view.single(images(pixels)[1]).shape == (2, 3, 32, 32)
    assert shown_view(RGBA).words == "composited over checker"  # type: ignore[union-attr]


def test_refusal_without_a_view_names_the_setting() -> None:
    with pytest.raises(UserError, match=r"LPIPS requires images that are rgb .* Set objective\.view to bands"):
        view_of(RGB, PLAIN_FIVE, None, "LPIPS")
    assert view_of(RGB, PLAIN_FIVE, Triples(), "LPIPS") is not None
    assert view_of(None, PLAIN_FIVE, None, "SSIM") is None
    assert isinstance(view_of(None, RGBA, None, "SSIM"), Composite)
    with pytest.raises(UserError, match="LPIPS requires images that are grey"):
        view_of(GREY, RGB, None, "LPIPS")


@pytest.mark.parametrize(
    ("view", "pixels", "words"),
    [
        (Repeated(), FIVE, "Repeated needs images of one channel"),
        (Composite(), FIVE, "Composite needs rgba images"),
        (
            Bands(bands=["nir", "red", "ultraviolet"]),
            FIVE,
            "a channel 'ultraviolet', but .* blue, green, red",
        ),
        (Triples(), GREY, "Triples needs images of at least 3 channels"),
    ],
)
def test_views_refuse_images_that_do_not_fit(view: View, pixels: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        view.of(pixels)  # type: ignore[arg-type]
    assert len(str(error.value).splitlines()) == 1


def test_text_of_an_option_becomes_a_view() -> None:
    assert isinstance(parse_view("grey"), Repeated)
    assert parse_view("composite:black,white").words == "composited over black, white"
    assert parse_view("bands:nir, red,green").words == "channels nir, red, green as red, green, blue"
    assert parse_view("triples:8").count == 8
    for text in ("bands", "triples:many", "photo", "composite:pink", "bands:a,b", "triples:0"):
        with pytest.raises(UserError):
            parse_view(text)
