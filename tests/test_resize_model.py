"""Narrower copies of autoencoders, and copies with more latent channels."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from tests.scripts import load_script

WIDTHS = (4, 12, 16)
KINDS = [AutoencoderKL, VQModel]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("resize_model")


def tiny(kind: Any, widths: tuple[int, ...] = WIDTHS) -> Any:
    levels = len(widths)
    torch.manual_seed(0)
    return kind(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths, norm_num_groups=2, layers_per_block=2, mid_block_add_attention=False,
        latent_channels=3,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_copy_of_the_same_widths_has_the_same_weights(script: ModuleType, kind: Any) -> None:
    model = tiny(kind)
    copy = script.narrowed(model, [*WIDTHS])
    torch.testing.assert_close(dict(copy.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("widths", [(4, 12, 8), (4, 6, 16), (2, 12, 16), (2, 6, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_along_the_same_channels_keep_the_same_ones(
    script: ModuleType, kind: Any, widths: tuple[int, ...]
) -> None:
    """Channels that nothing reads, and that leave a normalization as it is, go without a trace; all others stay."""
    model = tiny(kind)
    narrow = tiny(kind, widths)
    wide_weights, weights = model.state_dict(), narrow.state_dict()
    torch.manual_seed(1)
    for value in weights.values():
        value.add_(0.1 * torch.randn_like(value))
    # The narrow network inside the wide one: each group's first channels, and copies of them that nothing reads. Copies
    # leave a group's mean and deviation as they are.
    sources = {
        (wide, size): torch.arange(2).repeat_interleave(wide // 2) * (size // 2)
        + torch.arange(wide // 2).remainder(size // 2).repeat(2)
        for wide, size in zip(WIDTHS, widths, strict=True)
    }
    for name, value in wide_weights.items():
        inner = weights[name]
        for dim in range(min(2, value.dim())):
            if value.shape[dim] == inner.shape[dim]:
                continue
            wide, size = value.shape[dim], inner.shape[dim]
            inner = inner.index_select(dim, sources[wide, size])
            if dim == 1:
                copies = torch.arange(wide).remainder(wide // 2) >= size // 2
                inner[:, copies] = 0.0
        value.copy_(inner)
    model.load_state_dict(wide_weights)
    narrow.load_state_dict(weights)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    copy = script.narrowed(model, [*widths])
    torch.testing.assert_close(decoded(model, pixels), decoded(narrow, pixels), rtol=0, atol=1e-4)
    torch.testing.assert_close(dict(copy.state_dict()), dict(weights), rtol=0, atol=0)


@torch.no_grad()
def decoded(model: Any, pixels: Tensor) -> Tensor:
    output: Tensor = model(pixels).sample
    return output


def test_cosine_functions_are_orthonormal_and_start_with_the_mean(script: ModuleType) -> None:
    functions = script.cosine_functions(16, 8)
    torch.testing.assert_close(functions.T @ functions, torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(functions[:, 0], torch.full((192,), 192**-0.5))
    axes = functions.view(3, 8, 8, 16).square().sum(dim=(1, 2))
    grey = (axes - 1 / 3).abs().amax(dim=0) < 1e-4
    assert int(grey.sum()) == 11


@pytest.mark.parametrize("channels", [3, 6, 9])
def test_encoder_starts_as_the_standardized_transform(script: ModuleType, channels: int) -> None:
    model = tiny(AutoencoderKL, (16, 24, 32))
    torch.manual_seed(2)
    smooth = torch.nn.functional.interpolate(torch.rand(6, 3, 5, 5) * 2 - 1, size=32, mode="bicubic").clamp(-1, 1)
    images = [smooth[:3], smooth[3:]]
    copy = script.with_latent_channels(model, channels, images).eval()
    functions = script.cosine_functions(channels, 4)
    values = script.blocks(smooth, 4) @ functions
    expected = (values - values.mean(dim=0)) / values.std(dim=0)
    with torch.no_grad():
        posterior = copy.encode(smooth).latent_dist
    found = posterior.mean.permute(0, 2, 3, 1).flatten(0, 2)
    assert (found - expected).abs().mean() < 0.05
    assert set(posterior.logvar.unique().tolist()) == {script.LOG_VARIANCE}
    old, new = model.state_dict(), copy.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in new if name.startswith("decoder.up_blocks"))


def test_decoder_reads_latents_that_are_a_function_of_the_new_ones(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(AutoencoderKL, (16, 24, 32))
    torch.manual_seed(2)
    images = [torch.rand(4, 3, 16, 16) * 2 - 1]
    monkeypatch.setattr(script, "NEW_LATENTS", 0.0)
    first = script.with_latent_channels(model, 9, images).eval()  # its latents are linear in those of the next
    second = script.with_latent_channels(first, 9, images).eval()
    with torch.no_grad():
        expected = first.decode(first.encode(images[0]).latent_dist.mean).sample
        found = second.decode(second.encode(images[0]).latent_dist.mean).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
