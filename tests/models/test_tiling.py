"""Blended tiles: their places, their weights, and what becomes of posteriors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ldm_ae
from ldm_ae.core.errors import UserError
from ldm_ae.models import KLAutoencoder, Tiled, VQAutoencoder, for_inference
from ldm_ae.models.wrappers.tiles import tiles
from ldm_ae.quantizers import FSQ, VQ, ResidualVQ
from tests.models.patch_linear import PatchLinearAutoencoder


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 12).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(0, tile - 1))),
    st.integers(1, 4),
)
def test_weights_add_up_to_one_and_owned_parts_cover(
    height: int, width: int, sides: tuple[int, int], factor: int
) -> None:
    tile, overlap = sides
    total = torch.zeros(height * factor, width * factor)
    owners = torch.zeros(height, width)
    shapes = set()
    for each in tiles(height, width, tile=tile, overlap=overlap, factor=factor):
        rows, columns = each.rows.place, each.columns.place
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        pixels = [slice(part.start * factor, part.stop * factor) for part in (rows, columns)]
        total[pixels[0], pixels[1]] += each.weights
        owners[each.rows.owned, each.columns.owned] += 1
        assert rows.start <= each.rows.owned.start <= each.rows.owned.stop <= rows.stop
        shapes.add(each.weights.shape)
    assert (total - 1).abs().max() < 1e-6
    assert (owners == 1).all()
    assert shapes == {torch.Size([min(height, tile) * factor, min(width, tile) * factor])}


def test_neighbours_overlap_at_least_as_much_as_requested() -> None:
    for length in range(9, 40):
        places = [each.rows.place for each in tiles(length, 1, tile=8, overlap=3)]
        assert all(one.stop - other.start >= 3 for one, other in itertools.pairwise(places)), length


def test_borders_of_the_image_do_not_fade() -> None:
    found = list(tiles(20, 8, tile=8, overlap=4, factor=2))
    assert found[0].rows.weights[0] == found[-1].rows.weights[-1] == 1
    assert (found[0].columns.weights == 1).all()
    inner = found[0].rows.weights
    assert inner[-1] < 0.01  # where the network sees padding in place of the image
    assert (inner.diff() <= 0).all()


@pytest.fixture
def patch_model(patch_linear: None) -> PatchLinearAutoencoder:
    """A model whose tiles do not depend on each other, so that blended tiles equal the whole image."""
    return PatchLinearAutoencoder().eval()


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0, 4, 12, None])
def test_blended_tiles_of_a_local_model_equal_the_whole_image(
    patch_model: PatchLinearAutoencoder, overlap: int | None
) -> None:
    """Latents without moments; every position of a tile, and a batch."""
    tiled = Tiled(patch_model, tile=16, overlap=overlap)
    assert not tiled.exact
    pixels = torch.rand(2, 3, 44, 72) * 2 - 1
    posterior = tiled.encode(pixels)
    assert posterior.moments is None
    latents = patch_model.encode(pixels).mode()
    assert torch.allclose(posterior.mode(), latents, atol=1e-5)
    assert torch.allclose(tiled.decode(latents), patch_model.decode(latents), atol=1e-5)


@torch.no_grad()
def test_moments_are_blended_by_the_weights(tiny_model: KLAutoencoder) -> None:
    """Two tiles of 32 pixels that overlap by 16, so by 4 latents."""
    tiled = Tiled(tiny_model.eval(), tile=32, overlap=16, exact=False)
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    first, second = (tiny_model.encode(part).moments for part in (pixels[..., :32], pixels[..., 16:]))
    found = tiled.encode(pixels)
    assert torch.equal(found.moments[..., :4], first[..., :4])
    assert torch.equal(found.moments[..., 8:], second[..., 4:])
    rise = torch.sin((torch.arange(4) + 0.5) / 4 * torch.pi / 2) ** 2
    expected = first[..., 4:] * (1 - rise) + second[..., :4] * rise
    assert torch.allclose(found.moments[..., 4:8], expected, atol=1e-6)
    assert torch.equal(found.mode(), found.moments[:, :4])


@torch.no_grad()
@pytest.mark.parametrize("quantizer", [VQ(16, 4), FSQ((4, 4, 3)), ResidualVQ(VQ(8, 4), levels=2)])
def test_codes_come_from_the_tile_in_which_they_lie_deepest(quantizer: torch.nn.Module) -> None:
    model = VQAutoencoder(
        quantizer=quantizer, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip
    tiled = Tiled(model, tile=16, overlap=8, exact=False)
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    first, second = (model.encode(part) for part in (pixels[..., :16], pixels[..., 8:]))
    found = tiled.encode(pixels)
    assert torch.equal(found.indices, torch.cat([first.indices[..., :6], second.indices[..., 2:]], dim=-1))
    assert torch.equal(model.codebook.latents(found.indices), found.mode())
    assert torch.equal(found.rate(), model.encode(pixels).rate())
    assert found.regularization() == {}


@pytest.mark.slow
@torch.no_grad()
def test_smooth_image_has_no_seams() -> None:
    """The error of blended tiles does not step at their borders; that of tiles without an overlap does.

    A step is a difference of neighbouring columns' means. It is compared with other columns between two latents: this
    model's images have a faint pattern of eight pixels.
    """
    model = ldm_ae.load("kl-f8c4-small", device="cpu")
    height, width = 64, 192
    right, down = torch.linspace(-0.8, 0.8, width).expand(height, width), torch.linspace(-0.5, 0.5, height)[:, None]
    latents = model.encode(torch.stack([right, down + 0.2 * right, -right])[None]).mode()
    whole = model.decode(latents)
    ratios = []
    for overlap in (0, 16, 32):
        error = Tiled(model, tile=64, overlap=overlap, exact=False).decode(latents) - whole
        places = [each.columns.place for each in tiles(1, width // 8, tile=8, overlap=overlap // 8)]
        borders = {8 * place.start for place in places} | {8 * place.stop for place in places}
        steps = error.mean(dim=2).diff(dim=2).abs().mean(dim=(0, 1))
        at, elsewhere = ([c - 1 for c in range(8, width, 8) if (c in borders) == there] for there in (True, False))
        ratios.append(float(steps[at].mean() / steps[elsewhere].mean()))
    assert ratios[0] > 12
    assert max(ratios[1:]) < 1


def test_images_within_a_tile_are_computed_whole(tiny_model: KLAutoencoder) -> None:
    model = for_inference(tiny_model, device="cpu")
    pixels, latents = torch.rand(1, 3, 32, 24) * 2 - 1, torch.randn(1, 4, 8, 6)
    for exact in (False, True):
        tiled = Tiled(model, tile=32, exact=exact)
        assert torch.equal(tiled.encode(pixels).moments, model.encode(pixels).moments)
        assert torch.equal(tiled.decode(latents), model.decode(latents))


def test_images_that_do_not_fit_are_refused_as_by_the_model(tiny_model: KLAutoencoder) -> None:
    tiled = Tiled(tiny_model, tile=16)
    with pytest.raises(UserError, match="not divisible by the model's downsample factor 4"):
        tiled.encode(torch.zeros(1, 3, 64, 30))
    with pytest.raises(UserError, match=r"latents must be \(B, 4, h, w\)"):
        tiled.decode(torch.zeros(1, 3, 64, 32))
    with pytest.raises(UserError, match="pixel_values must be in"):
        tiled.eval().encode(torch.full((1, 3, 64, 32), 3.0))


def test_tiles_that_do_not_fit_the_model_are_refused(tiny_model: KLAutoencoder) -> None:
    for options, words in [
        ({"tile": 30}, "tile must be a multiple of the model's downsample factor 4, got 30; use for example 28"),
        ({"tile": -4}, "tile must be a multiple of"),
        (
            {"tile": 16, "overlap": 16},
            "overlap must be a multiple of the model's downsample factor 4 from 0 to 12, got",
        ),
        ({"tile": 16, "overlap": 3}, "overlap must be a multiple"),
    ]:
        with pytest.raises(UserError, match=words):
            Tiled(tiny_model, **options)
    with pytest.raises(UserError, match="PatchLinear cannot be tiled exactly"):
        Tiled(PatchLinearAutoencoder(), tile=16, exact=True)


def test_default_overlap_is_a_quarter_of_the_tile(tiny_model: KLAutoencoder) -> None:
    assert [Tiled(tiny_model, tile=tile).overlap for tile in (512, 20, 8, 4)] == [128, 8, 4, 0]
    assert Tiled(tiny_model).tile == 512


def test_exact_tiling_is_not_compiled(tiny_model: KLAutoencoder) -> None:
    assert list(Tiled(tiny_model, exact=False).compilable_parts()) == list(tiny_model.compilable_parts())
    with pytest.raises(UserError, match="declares no parts to compile"):
        for_inference(Tiled(tiny_model), device="cpu", compiled=True)
