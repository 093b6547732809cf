"""The interface of discriminators, and the layout of PatchGAN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_ae.core.draws import AUGMENTATION, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators import (
    DISCRIMINATORS,
    Discriminator,
    DiscriminatorPass,
    PatchDiscriminator,
    SpectralPatchDiscriminator,
)


@pytest.mark.parametrize("cls", DISCRIMINATORS.classes())
def test_every_discriminator_fulfils_the_interface(cls: type[Discriminator]) -> None:
    network = cls()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    x.requires_grad_()
    logits = network(x)
    assert logits.shape[0] == 2
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.abs().max() > 0
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    real, fake, penalty = DiscriminatorPass(cls().eval())(x, -x, step=0)
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
