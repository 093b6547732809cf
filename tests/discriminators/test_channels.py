"""Discriminators of images that are not RGB."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_ae.core.draws import AUGMENTATION, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import (
    DISCRIMINATOR_AIDS,
    DISCRIMINATORS,
    AidedDiscriminator,
    DiffAug,
    DINODiscriminator,
    Discriminator,
    EightBit,
    PatchDiscriminator,
    ProjectedDiscriminator,
)
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.images.views import Bands, Triples
from tests.channels import FIVE, PLAIN_FIVE, SPECS, images

SEEING = (DINODiscriminator, ProjectedDiscriminator)
"""Those over networks that know RGB only."""
every_spec = pytest.mark.parametrize("pixels", SPECS.values(), ids=SPECS)
every_class = pytest.mark.parametrize("cls", DISCRIMINATORS.classes())


def draws(count: int = 2) -> Draws:
    return Draws(range(count), AUGMENTATION)


@every_spec
@every_class
def test_every_discriminator_judges_all_channels(cls: type[Discriminator], pixels: PixelSpec) -> None:
    network = cls.example()
    network.prepare(pixels, Triples() if pixels == FIVE else None)
    assert network.pixels == pixels
    pixel_values = images(pixels, count=6, size=64)[1].requires_grad_()  # their triples have all five channels
    logits = network(network.augment(pixel_values, draws(6)))
    assert len(logits) == 6
    (gradient,) = torch.autograd.grad(logits.sum(), pixel_values)
    assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert not [name for name, parameter in network.named_parameters() if parameter.dtype != torch.float32]


@every_class
def test_rgb_changes_nothing(cls: type[Discriminator]) -> None:
    network = cls.example()
    before, state = {name: tensor.clone() for name, tensor in network.state_dict().items()}, torch.get_rng_state()
    network.prepare(RGB, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.view is None
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pixel_values = images(RGB, size=64)[1]
    assert network.augment(pixel_values, draws()) is pixel_values


@every_class
def test_discriminator_prepared_twice_keeps_its_weights(cls: type[Discriminator]) -> None:
    network = cls.example()
    network.prepare(GREY, None)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.prepare(GREY, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_first_convolution_is_initialized_as_the_others() -> None:
    network = PatchDiscriminator(ndf=64)
    network.prepare(PixelSpec(channels=12, meaning="channels"))
    first = network.layers[0]
    assert isinstance(first, nn.Conv2d)
    assert first.weight.shape == (64, 12, 4, 4)
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.05)  # 12,288 numbers
    assert not first.bias.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("cls", SEEING)
def test_networks_of_rgb_see_the_chosen_bands(cls: type[Discriminator]) -> None:
    network = cls.example()
    network.prepare(FIVE, Bands(bands=["nir", "red", "green"]))
    pixel_values = images(FIVE, size=64)[1]
    assert torch.equal(network.augment(pixel_values, draws()), pixel_values[:, [3, 2, 1]])
    with pytest.raises(UserError, match=rf"the discriminator \({cls.__name__}.*Set objective\.view"):
        cls.example().prepare(PLAIN_FIVE, None)


def test_real_and_fake_have_one_background() -> None:
    network = ProjectedDiscriminator.example()
    network.prepare(RGBA)
    transparent = torch.full((16, 4, 64, 64), -1.0)
    real, fake = (network.augment(values, draws(16)) for values in (transparent, transparent.clone()))
    assert torch.equal(real, fake)
    assert len(real.flatten(1).unique(dim=0)) == 3  # of black, white and checker


@every_spec
@pytest.mark.parametrize("cls", DISCRIMINATOR_AIDS.classes())
def test_every_aid_takes_the_images_or_refuses_them_in_one_line(cls: type, pixels: PixelSpec) -> None:
    network = AidedDiscriminator(PatchDiscriminator(n_layers=1, ndf=4, norm="none"), [cls.example()])
    if cls is EightBit and pixels == FIVE:
        with pytest.raises(UserError, match=r"EightBit rounds to 8 bits, but .* channels .*16 bits"):
            network.prepare(pixels)
        return
    network.prepare(pixels)
    assert network.pixels == pixels
    fake, real = (network.augment(values, draws()) for values in images(pixels))
    assert real.shape == fake.shape == (2, pixels.channels, 32, 32)
    logits = network(real), network(fake)
    penalty = network.penalty(real, fake, logits, step=0)
    assert penalty is None or penalty.isfinite()


def test_colour_operations_leave_alpha_as_it_is() -> None:
    pixel_values = images(RGBA)[1]
    aid = DiffAug(policy=["brightness", "saturation", "contrast"])
    aid.prepare(RGBA)
    found = aid.augment(pixel_values, draws())
    assert torch.equal(found[:, 3], pixel_values[:, 3])
    plain = DiffAug(policy=["brightness", "saturation", "contrast"])
    assert torch.equal(found[:, :3], plain.augment(pixel_values[:, :3], draws()))
    aid.prepare(FIVE)
    assert (aid.augment(images(FIVE)[1], draws()) != images(FIVE)[1]).flatten(2).any(dim=2).all()
