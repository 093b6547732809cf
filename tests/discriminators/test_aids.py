"""Every aid of a discriminator: its values, and what all have in common."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.draws import AUGMENTATION, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import (
    DISCRIMINATOR_AIDS,
    R1,
    AidedDiscriminator,
    DiffAug,
    Discriminator,
    DiscriminatorAid,
    DiscriminatorPass,
    EightBit,
    LeCam,
    PatchDiscriminator,
    with_aids,
)
from ldm_ae.images.uint8 import from_levels


class Linear(Discriminator):
    """The inner product of an image and a weight: D(x) = w · x, with any number of equal logits."""

    def __init__(self, logits: int = 1, size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(3, size, size, generator=generator))
        self.logits = logits

    def forward(self, pixel_values: Tensor) -> Tensor:
        return (pixel_values * self.weight).sum(dim=(1, 2, 3))[:, None].expand(-1, self.logits)


class Attentive(Discriminator):
    """One layer of attention between the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.project = nn.Linear(24, 24)

    def forward(self, pixel_values: Tensor) -> Tensor:
        rows = self.project(pixel_values.transpose(1, 2).flatten(2))[:, None]
        return F.scaled_dot_product_attention(rows, rows, rows).mean(dim=(1, 2, 3))


def images(count: int = 4, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def augmented(aid: DiscriminatorAid, pixel_values: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
    return aid.augment(pixel_values, Draws(range(len(pixel_values)) if seeds is None else seeds, AUGMENTATION))


# ----------------------------------------------------------------------------------------------------- all the aids


@pytest.mark.parametrize("cls", DISCRIMINATOR_AIDS.classes())
def test_every_aid_fulfils_the_interface(cls: type[DiscriminatorAid]) -> None:
    aided = AidedDiscriminator(PatchDiscriminator(n_layers=1, ndf=4, norm="group"), [cls.example()])
    x = images(size=16).requires_grad_()
    seen = augmented(aided.aids[cls.__name__], x)  # type: ignore[arg-type]
    assert seen.shape == x.shape
    (gradient,) = torch.autograd.grad(seen.sum(), x)
    assert gradient.abs().sum() > 0
    # The transform belongs to the sample: not to its batch, and not to the images.
    parts = [augmented(aided.aids[cls.__name__], x[i : i + 1], [i]) for i in range(4)]  # type: ignore[arg-type]
    assert torch.allclose(seen, torch.cat(parts), atol=1e-6)
    output = DiscriminatorPass(aided)(seen, seen.detach() * 0.5, 0)
    assert output.logits_real.isfinite().all()
    assert output.penalty is None or (output.penalty.ndim == 0 and output.penalty >= 0)
    aided.learn(torch.tensor(1.0), torch.tensor(-1.0))
    again = AidedDiscriminator(PatchDiscriminator(n_layers=1, ndf=4, norm="group"), [cls.example()])
    for name, part in aided.saved_parts().items():
        again.saved_parts()[name].load_state_dict(part.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), aided.buffers(), strict=True))


@pytest.mark.parametrize("cls", DISCRIMINATOR_AIDS.classes())
def test_aid_leaves_the_discriminators_tensors_under_their_names(cls: type[DiscriminatorAid]) -> None:
    network = PatchDiscriminator(n_layers=1, ndf=4, norm="group")
    aided = AidedDiscriminator(network, [cls.example()])
    assert aided.identity == "PatchDiscriminator"
    assert aided.saved_parts()["discriminator"] is network
    assert list(aided.learning_parameters()) == [*network.parameters(), *aided.aids.parameters()]
    assert aided.needs_double_backward is cls.needs_double_backward


def test_aids_are_applied_in_order_and_their_penalties_added() -> None:
    network, x = Linear(), 3 * images()
    aids = [EightBit(), DiffAug(), R1(every=1), LeCam(weight=1.0)]
    aided = AidedDiscriminator(network, aids)
    draws = Draws(range(4), AUGMENTATION)
    expected = DiffAug().augment(EightBit().augment(x, draws), Draws(range(4), AUGMENTATION))
    assert torch.equal(aided.augment(x, Draws(range(4), AUGMENTATION)), expected)
    assert not torch.equal(expected, EightBit().augment(DiffAug().augment(x, draws), draws))
    aided.learn(torch.tensor(0.5), torch.tensor(-0.5))
    logits = network(x), network(-x)
    terms = [aid.penalty(network, x, -x, logits, 0).item() for aid in aids[2:]]
    assert terms[0] > 0
    assert terms[1] > 0
    assert aided.penalty(x, -x, logits, 0).item() == pytest.approx(terms[0] + terms[1], rel=1e-6)
    assert with_aids(network, []) is network
    assert with_aids(None, []) is None


def test_invalid_aids_are_refused() -> None:
    with pytest.raises(UserError, match="expected at most one DiffAug, got 2; remove 1"):
        with_aids(Linear(), [DiffAug(), LeCam(), DiffAug()])
    with pytest.raises(UserError, match="has no effect without a discriminator"):
        with_aids(None, [DiffAug()])
    with pytest.raises(UserError, match=r"expected transforms among brightness, .*, got 'blur'"):
        DiffAug(policy=["blur"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="cutout: expected a fraction from 0 to 1, got 2"):
        DiffAug(cutout=2)
    with pytest.raises(UserError, match=r"got weight -1 and decay 0\.999"):
        LeCam(weight=-1)
    with pytest.raises(UserError, match=r"got 10\.0 and 0"):
        R1(every=0)


# ---------------------------------------------------------------------------------------------------------- DiffAug


def test_diffaug_colours_have_the_published_ranges_and_keep_their_means() -> None:
    x = images(512)
    brightness = (augmented(DiffAug(policy=["brightness"]), x) - x).flatten(1)
    assert (brightness.amax(1) - brightness.amin(1)).max() < 1e-6
    assert brightness.min() == pytest.approx(-0.5, abs=0.01)
    assert brightness.max() == pytest.approx(0.5, abs=0.01)
    for policy, dims, low, high in (("saturation", 1, 0.0, 2.0), ("contrast", (1, 2, 3), 0.5, 1.5)):
        found = augmented(DiffAug(policy=[policy]), x)  # type: ignore[list-item]
        means = x.mean(dim=dims, keepdim=True)
        assert torch.allclose(found.mean(dim=dims, keepdim=True), means, atol=1e-6)
        factors = ((found - means) * (x - means)).sum(dim=(1, 2, 3)) / (x - means).square().sum(dim=(1, 2, 3))
        assert torch.allclose(found, means + factors[:, None, None, None] * (x - means), atol=1e-5)
        assert low <= factors.min() < low + 0.03
        assert high - 0.03 < factors.max() <= high + 1e-5


def test_diffaug_translation_shifts_by_up_to_an_eighth_and_fills_with_zeros() -> None:
    x = torch.arange(1.0, 1.0 + 16 * 24).view(1, 1, 16, 24).expand(256, 3, 16, 24)
    found = augmented(DiffAug(policy=["translation"]), x)
    shifts = set()
    for image in found:
        down, right = (int(n) for n in (image[0] > 0).nonzero()[0])
        up, left = (int(side - 1 - n) for side, n in zip((16, 24), (image[0] > 0).nonzero()[-1], strict=True))
        expected = torch.zeros(16, 24)
        dy, dx = down - up, right - left
        rows, columns = slice(down, 16 - up), slice(right, 24 - left)
        expected[rows, columns] = x[0, 0, up : 16 - down, left : 24 - right]
        assert torch.equal(image, expected.expand(3, 16, 24))
        assert 0 in (down, up)
        assert 0 in (right, left)
        shifts.add((dy, dx))
    assert {dy for dy, _ in shifts} == set(range(-2, 3))
    assert {dx for _, dx in shifts} == set(range(-3, 4))


def test_diffaug_cutout_clears_one_rectangle_of_half_the_sides() -> None:
    x = torch.ones(256, 3, 16, 24)
    found = augmented(DiffAug(policy=["cutout"]), x)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    areas = set()
    for image in found:
        rows, columns = ((image[0] == 0).any(dim=dim).sum() for dim in (1, 0))
        assert (image == 0).sum() == 3 * rows * columns
        assert 4 <= rows <= 8
        assert 6 <= columns <= 12
        areas.add(int(rows * columns))
    assert max(areas) == 8 * 12  # the whole rectangle, unless it lies at the border
    assert min(areas) < 8 * 12
    assert torch.equal(augmented(DiffAug(policy=["cutout"], cutout=0.0), x), x)


def test_diffaug_transforms_do_not_depend_on_each_other() -> None:
    x = images(8, size=16)
    together = augmented(DiffAug(policy=["contrast", "cutout"]), x)
    contrast = augmented(DiffAug(policy=["contrast"]), x)
    assert torch.equal(together, augmented(DiffAug(policy=["cutout"]), contrast))


def test_diffaug_gradient_is_that_of_the_transform() -> None:
    x = images(2, size=6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: augmented(DiffAug(), pixels), (x,), fast_mode=True)


# --------------------------------------------------------------------------------------------------------- EightBit


def test_rounding_keeps_the_256_levels_and_rounds_all_else() -> None:
    levels = from_levels(torch.arange(256.0)).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(augmented(EightBit(), levels), levels)
    between = levels + torch.linspace(-0.45, 0.45, 256).view(16, 16) / 127.5
    assert torch.equal(augmented(EightBit(), between), levels)
    beyond = torch.tensor([-1.7, 1.2]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert augmented(EightBit(), beyond).unique().tolist() == [-1.0, 1.0]


def test_rounding_passes_gradients_straight_through() -> None:
    x = (1.5 * images()).requires_grad_()  # beyond [-1, 1] too
    weights = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((augmented(EightBit(), x) * weights).sum(), x)
    assert torch.equal(gradient, weights)


# ------------------------------------------------------------------------------------------------------------ LeCam


def test_lecam_equals_values_by_hand() -> None:
    aid, network = LeCam(weight=0.5, decay=0.75), Linear()
    x = images()
    # One image has the logits 1 and 3, that is 2; the other -1.
    real, fake = torch.tensor([[1.0, 3.0], [-1.0, -1.0]]), torch.tensor([[0.0, 0.0], [-3.0, -5.0]])
    assert aid.penalty(network, x, x, (real, fake), 0) == 0  # no averages yet
    aid.learn(torch.tensor(1.0), torch.tensor(-2.0))
    assert (aid.average_real, aid.average_fake) == (1.0, -2.0)
    # Distances: 2 + 2 and -1 + 2; 1 - 0 and 1 + 4. Squares: (16 + 1) / 2 + (1 + 25) / 2 = 21.5.
    assert aid.penalty(network, x, x, (real, fake), 1) == pytest.approx(0.5 * 21.5)
    aid.learn(torch.tensor(5.0), torch.tensor(2.0))
    assert (aid.average_real, aid.average_fake) == (2.0, -1.0)
    # relu(2 + 1)² + relu(-1 + 1)², relu(2 - 0)² + relu(2 + 4)².
    assert aid.penalty(network, x, x, (real, fake), 2) == pytest.approx(0.5 * ((9 + 0) / 2 + (4 + 36) / 2))
    # Beyond the other's average nothing is punished.
    assert aid.penalty(network, x, x, (real - 10, fake + 10), 2) == 0


# --------------------------------------------------------------------------------------------------------------- R1


@pytest.mark.parametrize("logits", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_r1_of_a_linear_discriminator_has_its_closed_form(logits: int, dtype: torch.dtype) -> None:
    """D(x) = w · x has the gradient w: the penalty is every * gamma / 2 * w², and its gradient every * gamma * w."""
    network, aid, x = Linear(logits), R1(gamma=0.3, every=4), images()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        found = aid.penalty(network, x, x, (network(x), network(x)), 8)
    assert found is not None
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.5 * 4 * 0.3 * network.weight.square().sum().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, network.weight)
    assert torch.allclose(gradient, 4 * 0.3 * network.weight, rtol=1e-5)


def test_r1_is_computed_at_every_sixteenth_step() -> None:
    network, x = Linear(), images()
    found = [step for step in range(40) if R1().penalty(network, x, x, (x, x), step) is not None]
    assert found == [0, 16, 32]


def test_r1_of_small_gradients_is_not_rounded_to_zero_in_half_precision() -> None:
    network, x = PatchDiscriminator(n_layers=1, ndf=4, norm="none"), images(size=16)
    for parameter in network.parameters():
        parameter.data *= 0.05
    expected = R1().penalty(network, x, x, (x, x), 0)
    assert expected is not None
    assert 0 < expected < 1e-7  # below the smallest number of float16
    with torch.autocast("cpu", dtype=torch.float16):
        found = R1().penalty(network, x, x, (x, x), 0)
    assert torch.equal(found, expected)


def test_r1_differentiates_attention_twice() -> None:
    network, x = Attentive(), images()
    found = R1().penalty(network, x, x, (x, x), 0)
    assert found is not None
    (gradient,) = torch.autograd.grad(found, network.project.weight)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        network.project.weight += step
    change = R1().penalty(network, x, x, (x, x), 0) - found
    assert change.item() == pytest.approx(1e-3 * gradient.norm().item(), rel=0.02)  # to the first order
