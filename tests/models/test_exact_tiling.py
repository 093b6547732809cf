"""Bands of rows give what the whole image gives, and keep less in memory."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import images_in_range
from ldm_ae.models import KLAutoencoder, Tiled, VQAutoencoder, for_inference, fp32_fallbacks
from ldm_ae.models.wrappers.bands import ChannelMoments, Stored
from ldm_ae.models.wrappers.exact_tiling import has_bands, in_bands
from ldm_ae.quantizers import VQ

# Widths that fall by half towards the full resolution, as Stable Diffusion's; equal ones; ones that grow.
WIDTHS = [(4, 8, 16), (8, 8), (16, 8, 4)]
NETWORKS: list[dict[str, Any]] = [
    *({"block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": 2} for widths in WIDTHS),
    {"block_out_channels": (4, 8), "layers_per_block": 2, "norm_num_groups": 4, "attention_levels": (0, 1)},
    {"block_out_channels": (4, 4, 8), "layers_per_block": 1, "norm_num_groups": 1, "mid_block_add_attention": False,
     "use_quant_conv": False, "act_fn": "gelu"},
]  # fmt: skip
# Odd numbers of latents, one row, one column, and heights that bands do not divide.
SIZES = [(12, 20), (28, 4)]


def network(seed: int = 0, **options: Any) -> KLAutoencoder:
    """A network whose biases and normalizations are not those of initialization, 0 and 1."""
    model = KLAutoencoder(**options).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("options", NETWORKS)
def test_bands_equal_the_whole_image_in_float64(options: dict[str, Any]) -> None:
    """In float64, so that no fault hides behind rounding; area 1 makes bands of one row."""
    net = network(**options).net.double()
    for height, width in SIZES:
        factor = 2 ** (len(options["block_out_channels"]) - 1)
        pixels = torch.randn(2, 3, height, width, dtype=torch.float64)
        latents = torch.randn(2, 4, height // factor, width // factor, dtype=torch.float64)
        for part, values in ((net.encoder, pixels), (net.decoder, latents)):
            expected = part(values)
            for area in (1, 40):
                with in_bands([part], area):
                    assert relative(part(values), expected) < 1e-11, (height, width, area)


def test_tiled_model_equals_the_whole_one_within_rounding() -> None:
    """Within what float32 itself is off: bands round in another order than the whole image, not more coarsely."""
    model = network(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4)
    tiled, wide = Tiled(model, tile=16), copy.deepcopy(model.net).double()
    assert tiled.exact
    pixels, latents = torch.rand(2, 3, 36, 52) * 2 - 1, torch.randn(2, 4, 9, 13)
    moments = wide.quant_conv(wide.encoder(pixels.double()))
    images = wide.decoder(wide.post_quant_conv(latents.double()))
    found, whole = (each.encode(pixels).moments.double() for each in (tiled, model))
    assert relative(found, moments) < 2 * relative(whole, moments) + 1e-7
    found, whole = (each.decode(latents).double() for each in (tiled, model))
    assert relative(found, images) < 2 * relative(whole, images) + 1e-7
    assert tiled.decode(latents).dtype == torch.float32
    assert "forward" not in vars(model.net.encoder)


def test_discrete_model_has_the_codes_of_the_whole_image() -> None:
    model = VQAutoencoder(quantizer=VQ(16, 4), block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    model.eval().requires_grad_(False)
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    expected, found = model.encode(pixels), Tiled(model, tile=8, exact=True).encode(pixels)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.mode(), expected.mode())


def test_statistics_do_not_cancel_for_values_far_from_zero() -> None:
    """A sum of squares in float32 would lose the variance 1 beside the square of the mean, 1e8."""
    found = ChannelMoments()
    values = torch.randn(1, 4, 30, 10) + 1e4
    for start in range(0, 30, 7):
        found.add(values[:, :, start : start + 7])
    scale, shift = found.affine(nn.GroupNorm(2, 4, eps=0.0))
    groups = values.double().view(2, -1)
    expected = ((groups - groups.mean(1, keepdim=True)) / groups.std(1, correction=0, keepdim=True)).view_as(values)
    assert (values.double() * scale + shift - expected).abs().max() < 1e-3


@pytest.fixture
def most_stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The elements of the stored bands, now and at most."""
    count = {"now": 0, "most": 0}
    append = Stored.append

    def free(elements: int) -> None:
        count["now"] -= elements

    def counted(stored: Stored, start: int, band: Tensor) -> None:
        append(stored, start, band)
        count["now"] += band.numel()
        count["most"] = max(count.values())
        weakref.finalize(band, free, band.numel())

    monkeypatch.setattr(Stored, "append", counted)
    return count


@pytest.mark.parametrize("widths", [(8, 16, 32, 32), (8, 8, 8, 8)])
def test_stored_bands_are_at_most_one_residual_blocks_output(
    widths: tuple[int, ...], most_stored: dict[str, int]
) -> None:
    model = network(block_out_channels=widths, layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False)
    with in_bands([model.net.decoder], 8 * 8):
        model.net.decoder(torch.randn(1, 4, 16, 16))
    largest, row = 8 * 128 * 128, 8 * 128
    # The latents are there too, and while a block's output replaces its input, the rows of its halo are there twice.
    assert largest <= most_stored["most"] <= largest + 4 * 16 * 16 + 6 * row


def test_networks_with_unknown_layers_have_no_bands() -> None:
    def refused(change: Any) -> bool:
        decoder = network(**NETWORKS[0]).net.decoder
        assert has_bands(decoder)
        change(decoder)
        return not has_bands(decoder)

    assert refused(lambda net: setattr(net.conv_in, "padding_mode", "reflect"))
    assert refused(lambda net: setattr(net, "conv_norm_out", nn.Identity()))
    assert refused(lambda net: setattr(net.up_blocks[0].resnets[0].dropout, "p", 0.1))
    assert refused(lambda net: setattr(net.mid_block.resnets[1], "time_emb_proj", nn.Linear(2, 2)))
    assert refused(lambda net: net.up_blocks[0].resnets.append(nn.Conv2d(4, 4, 3)))
    assert not has_bands(nn.Conv2d(3, 3, 3))


def test_gradients_are_refused() -> None:
    model = network(**NETWORKS[0]).requires_grad_()
    tiled, latents = Tiled(model, tile=8), torch.randn(1, 4, 5, 5)
    with pytest.raises(UserError, match="exact tiling does not compute gradients"):
        tiled.decode(latents)
    with torch.no_grad():
        assert relative(tiled.decode(latents), model.decode(latents)) < 1e-4
    Tiled(model, tile=8, exact=False).decode(latents).sum().backward()
    assert model.last_layer.grad is not None


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_overflow_guard_works_inside_and_outside(inside: bool, exact: bool, tiny_model: KLAutoencoder) -> None:
    with torch.no_grad():
        tiny_model.net.encoder.conv_in.weight.mul_(1e3)
        tiny_model.net.decoder.conv_in.weight.mul_(1e3)
    tiny_model.eval().requires_grad_(False)
    latents, pixels = 1e3 * torch.randn(1, 4, 8, 6), 1e3 * torch.randn(1, 3, 32, 24)
    plain = Tiled(for_inference(copy.deepcopy(tiny_model), device="cpu"), tile=16, exact=exact)
    with images_in_range():
        expected = plain.decode(latents), plain.encode(pixels).moments
    if inside:
        model = Tiled(for_inference(tiny_model, device="cpu", precision="fp16"), tile=16, exact=exact)
        if exact:  # also a float32 model that exists before it is used in bands
            model.model.decode(latents)
    else:
        model = for_inference(Tiled(tiny_model, tile=16, exact=exact), device="cpu", precision="fp16")
    before = fp32_fallbacks(model)
    with images_in_range():
        found = model.decode(latents), model.encode(pixels).moments
    assert fp32_fallbacks(model) > before
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(for_inference(model, device="cpu").decode(latents), expected[0])  # the guard is gone


def test_half_precision_and_autocast_follow_the_whole_image(tiny_model: KLAutoencoder) -> None:
    latents = torch.randn(1, 4, 9, 7)
    exact = tiny_model.eval().requires_grad_(False).decode(latents)
    # bfloat16 has 8 bits; the errors of some dozens of layers add up.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, tiled = tiny_model.decode(latents), Tiled(tiny_model, tile=8).decode(latents)
    assert relative(tiled, exact) < 2 * relative(whole, exact)
    half = for_inference(copy.deepcopy(tiny_model), device="cpu", precision="bf16")
    assert relative(Tiled(half, tile=8).decode(latents), exact) < 2 * relative(half.decode(latents), exact)


def test_tiled_model_can_be_copied_and_pickled(tiny_model: KLAutoencoder) -> None:
    tiled = Tiled(tiny_model.eval().requires_grad_(False), tile=8)
    latents = torch.randn(1, 4, 9, 7)
    expected = tiled.decode(latents)
    for other in (copy.deepcopy(tiled), pickle.loads(pickle.dumps(tiled))):
        assert torch.equal(other.decode(latents), expected)


def test_hooks_of_the_parts_run(tiny_model: KLAutoencoder) -> None:
    seen: list[torch.Size] = []
    tiny_model.net.decoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    Tiled(tiny_model.eval().requires_grad_(False), tile=8).decode(torch.randn(1, 4, 9, 7))
    assert seen == [torch.Size((1, 3, 36, 28))]
