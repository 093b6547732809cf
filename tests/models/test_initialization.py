"""A network that begins as a thumbnail, enlarged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ldm_ae.core.code_maps import pack_maps, split_maps
from ldm_ae.core.errors import UserError
from ldm_ae.models import HierarchicalVQAutoencoder, KLAutoencoder, load_autoencoder
from ldm_ae.quantizers import FSQ, VQ

SHAPES = [
    {"block_out_channels": (32, 64, 96), "norm_num_groups": 8},  # groups of 4, 8 and 12
    {"block_out_channels": (16, 16, 16), "norm_num_groups": 4},  # no change of width on the path
    {"block_out_channels": (20, 35), "norm_num_groups": 5, "attention_levels": (1,)},  # groups of 4 and 7
    {"block_out_channels": (32, 32), "norm_num_groups": 1, "mid_block_add_attention": True, "latent_channels": 8},
]


def smooth(batch: int = 3, size: int = 64) -> Tensor:
    coarse = torch.rand(batch, 3, 6, 6) * 1.6 - 0.8
    return functional.interpolate(coarse, size=size, mode="bicubic").clamp(-1, 1)


def thumbnail_and_back(pixel_values: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Downscale by averages of 2x2 pixels and upscale bilinearly by 2, level by level."""
    small = pixel_values
    for _ in range(levels):
        small = functional.avg_pool2d(small, 2)
    large = small
    for _ in range(levels):
        large = functional.interpolate(large, scale_factor=2, mode="bilinear", align_corners=False)
    return small, large


@pytest.mark.parametrize("shape", SHAPES)
def test_thumbnail_initialization_downscales_and_upscales_images(shape: dict[str, object]) -> None:
    arguments = {"layers_per_block": 1, "mid_block_add_attention": False, "initialization": "thumbnail"} | shape
    model = KLAutoencoder(**arguments).eval()  # type: ignore[arg-type]
    x = smooth()
    with torch.no_grad():
        latents = model.encode(x).mode()
        found = model.decode(latents)
    small, large = thumbnail_and_back(x, len(shape["block_out_channels"]) - 1)  # type: ignore[arg-type]
    assert_proportional(latents, small)
    assert_enlarged(found, large)


def assert_proportional(latents: Tensor, thumbnail: Tensor) -> None:
    for channel in range(3):
        pair = torch.stack([latents[:, channel].flatten(), thumbnail[:, channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.999


def assert_enlarged(found: Tensor, large: Tensor) -> None:
    # The standard deviation of group normalization varies with the image by some per cent; zeros pad the outermost
    # pixels.
    inside = (..., slice(8, -8), slice(8, -8))
    assert (found - large)[inside].abs().mean() < 0.06 * large[inside].abs().mean()


@pytest.mark.parametrize(("maps", "code"), [(2, 4), (3, 3)])
def test_hierarchical_thumbnail_initialization_is_a_pyramid(maps: int, code: int) -> None:
    """The finest map without quantization corrects any codes of the coarser ones; without coarse codes it holds the
    whole thumbnail, and with good ones only their error."""
    torch.manual_seed(0)
    model = HierarchicalVQAutoencoder(
        quantizer=VQ(256, code), maps=maps, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        initialization="thumbnail",
    ).eval()  # fmt: skip
    x = smooth()
    small, large = thumbnail_and_back(x, 1)
    spread = []
    with torch.no_grad():
        for step in ("no codes", "codes of these images"):
            for number, quantizer in enumerate(model.quantizers):
                codes = quantizer.state_dict()["embedding.weight"].zero_()
                if step != "no codes":
                    rows = split_maps(model.encode(x).quantized.latents, maps)[number].movedim(1, -1).flatten(0, 2)
                    codes.copy_(rows[torch.randint(len(rows), (256,))])
            posterior = model.encode(x)
            *coarser, _ = split_maps(posterior.mode(), maps)
            latents = split_maps(posterior.quantized.latents, maps)
            if step == "no codes":
                for own, factor in zip(latents[::-1], (1, 2, 4), strict=False):
                    assert_proportional(own, functional.avg_pool2d(small, factor))
            assert all(not own[:, 3:].any() for own in latents)
            assert_enlarged(model.decode(pack_maps([*coarser, latents[-1]])), large)
            spread.append(latents[-1].std())
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.slow
@pytest.mark.parametrize("hierarchical", [False, True])
def test_every_parameter_learns_after_thumbnail_initialization(hierarchical: bool) -> None:
    shape = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "initialization": "thumbnail"}
    model: KLAutoencoder | HierarchicalVQAutoencoder
    if hierarchical:
        model = HierarchicalVQAutoencoder(quantizer=FSQ((33,) * 4), **shape)  # type: ignore[arg-type]
    else:
        model = KLAutoencoder(mid_block_add_attention=False, **shape)  # type: ignore[arg-type]
    noise = None if hierarchical else torch.randn(4, 4, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = smooth(4, 32)
    losses = []
    for _ in range(30):
        loss = (model(x, noise).reconstructions - x).abs().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses[-3:]) < 0.75 * losses[0]
    unmoved = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert unmoved == []


def test_thumbnail_initialization_is_saved_with_the_weights(tmp_path) -> None:
    model = KLAutoencoder(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False,
        initialization="thumbnail",
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    x = smooth(1, 32)
    assert torch.equal(load_autoencoder(tmp_path).encode(x).mode(), model.encode(x).mode())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"norm_num_groups": 8}, "that hold 3 colours together, got 16 channels in 8 groups"),
        ({"latent_channels": 2}, "at least 3 latent channels, got silu and 2"),
        ({"act_fn": "relu"}, "needs act_fn silu"),
    ],
)
def test_thumbnail_initialization_refuses_unsupported_networks(arguments: dict[str, object], words: str) -> None:
    base = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
    with pytest.raises(UserError, match=words):
        KLAutoencoder(initialization="thumbnail", **(base | arguments))  # type: ignore[arg-type]
