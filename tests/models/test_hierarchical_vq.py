"""Hierarchical discrete autoencoders: their maps, their rate, and what the commands make of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm_ae.cli import main
from ldm_ae.core.code_maps import pack_maps, split_maps
from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.codebook import CodebookUsage
from ldm_ae.interop import export_ldm
from ldm_ae.latents import LatentStore, verify_store
from ldm_ae.models import HierarchicalVQAutoencoder, LatentSpec, load_autoencoder
from ldm_ae.quantizers import EMAVQ, VQ, CodebookCare, ResidualVQ
from ldm_ae.regularizers import EQVAE

WIDTHS = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}


def tiny(maps: int = 2, **options: object) -> HierarchicalVQAutoencoder:
    """Codes as far apart as the latents are; the finest map has half the image's sides."""
    torch.manual_seed(0)
    model = HierarchicalVQAutoencoder(quantizer=VQ(16, 3), maps=maps, **WIDTHS, **options).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for quantizer in model.quantizers:
            quantizer.state_dict()["embedding.weight"].normal_(std=0.3)
    return model


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_maps_are_packed_place_by_place_without_loss() -> None:
    coarse, fine = torch.tensor([[1, 2]]), torch.tensor([[10, 11, 20, 21], [12, 13, 22, 23]])
    packed = pack_maps([coarse[None, None], fine[None, None]])
    assert packed[0, :, 0].T.tolist() == [[1, 10, 11, 12, 13], [2, 20, 21, 22, 23]]
    maps = [torch.randn(2, 3, 2 << i, 4 << i) for i in range(3)]
    assert pack_maps(maps).shape == (2, 3 * 21, 2, 4)
    assert all(torch.equal(found, given) for found, given in zip(split_maps(pack_maps(maps), 3), maps, strict=True))


@pytest.mark.parametrize("maps", [2, 3])
@torch.no_grad()
def test_indices_are_maps_of_every_size_and_decode_to_the_reconstructions(maps: int) -> None:
    model, x = tiny(maps), pictures()
    spec, factor = model.latent_spec, 2**maps
    posterior = model.encode(x)
    assert (spec.downsample_factor, spec.codebook_maps, spec.channels) == (factor, maps, 3 * spec.codebook_levels)
    assert posterior.indices is not None
    found = spec.index_maps(posterior.indices)
    assert [one.shape[1:] for one in found] == [((16 // factor) << i, (32 // factor) << i) for i in range(maps)]
    assert all(len(one.unique()) > 3 for one in found)
    codes = sum(one[0].numel() for one in found)
    assert posterior.rate().tolist() == pytest.approx([codes * math.log2(16)] * 2)
    latents = split_maps(posterior.mode(), maps)
    for quantizer, one, values in zip(model.quantizers, found, latents, strict=True):
        assert torch.equal(quantizer.codes(one), values)
    assert torch.equal(model.decode_indices(posterior.indices), model.decode(posterior.mode()))


@torch.no_grad()
def test_coarse_codes_condition_the_fine_ones_and_every_map_reaches_the_image() -> None:
    model, x = tiny(3), pictures(1)
    inputs: list[Tensor] = []
    model.quantizers[2].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    posterior = model.encode(x)
    assert posterior.indices is not None
    image = model.decode_indices(posterior.indices)
    for i in range(2):
        own = model.quantizers[i].state_dict()["embedding.weight"]
        before = own.clone()
        own.copy_(before.flip(0) + 1.0)
        model.encode(x)
        own.copy_(before)
        assert not torch.allclose(inputs[-1], inputs[0])
    for i in range(3):
        maps = split_maps(posterior.indices, 3)
        maps[i] = (maps[i] + 1) % 16
        assert not torch.allclose(model.decode_indices(pack_maps(maps)), image)


def test_each_map_learns_its_own_codes_from_all_micro_batches() -> None:
    torch.manual_seed(0)
    model = HierarchicalVQAutoencoder(quantizer=EMAVQ(16, 3, decay=0.5), **WIDTHS).train()  # type: ignore[arg-type]
    expected = model.quantizers
    x = pictures(4)
    batches = [model.encode(x[:2]), model.encode(x[2:])]
    copies = [EMAVQ(16, 3, decay=0.5) for _ in expected]
    for i, (copy, quantizer) in enumerate(zip(copies, expected, strict=True)):
        copy.load_state_dict(quantizer.state_dict())
        copy.learn([copy(split_maps(batch.quantized.latents, 2)[i]) for batch in batches])
    statistics = model.learn(batches)
    for copy, quantizer in zip(copies, expected, strict=True):
        assert torch.equal(copy.weight, quantizer.state_dict()["embedding.weight"])
    used = [len(torch.cat([split_maps(b.indices, 2)[i].flatten() for b in batches]).unique()) / 16 for i in range(2)]
    assert float(statistics["codebook_usage"]) == pytest.approx(sum(used) / 2)


def test_codes_of_a_map_start_at_latents_that_are_conditioned_on_codes_of_the_coarser_map() -> None:
    torch.manual_seed(0)
    quantizer = EMAVQ(4, 3, care=CodebookCare(kmeans_iterations=5))
    model = HierarchicalVQAutoencoder(quantizer=quantizer, maps=3, **WIDTHS).train()  # type: ignore[arg-type]
    x = pictures(2)
    for step in range(3):
        before = [each.table().clone() for each in model.quantizers]
        model.learn([model.encode(x)])
        moved = [not torch.equal(each.table(), old) for each, old in zip(model.quantizers, before, strict=True)]
        assert moved == [number <= step for number in range(3)]


def test_codes_are_counted_by_map() -> None:
    """Entropies: of four codes 0, 0, 1, 1 one bit each, of sixteen codes of which each occurs once four bits each."""
    coarse, fine = torch.tensor([0, 0, 1, 1]).view(1, 1, 2, 2), torch.arange(16).view(1, 1, 4, 4)
    usage = CodebookUsage(16, maps=2)
    usage.update(pack_maps([coarse, fine]), pixels=64)
    found = usage.summary()
    assert found is not None
    assert (found.levels, found.used.tolist(), found.totals.tolist()) == (2, [2, 16], [4, 16])
    assert found.entropies.tolist() == pytest.approx([1.0, 4.0])
    assert found.entropy_bits_per_pixel == pytest.approx((4 * 1 + 16 * 4) / 64)
    assert found.line().startswith("codebook: 2, 16 of 16 codes in use over 4, 16 places, 2.50 of 4.00 bits")
    # Each code is counted once more than it occurred: 3/20 and 2/32.
    bits = found.bits(pack_maps([coarse, fine]))
    assert bits.tolist() == pytest.approx([-4 * math.log2(3 / 20) - 16 * math.log2(2 / 32)])


def test_wrong_arguments_and_regularizers_are_refused() -> None:
    with pytest.raises(UserError, match=r"expected 2 to 4, got 1\. For one map use VQAutoencoder"):
        tiny(1)
    with pytest.raises(UserError, match="one code at each place, and ResidualVQ chooses 2"):
        HierarchicalVQAutoencoder(quantizer=ResidualVQ(VQ(8, 2), 2))
    with pytest.raises(UserError, match="at least 3 codebook_dim and latent channels, got silu and 2"):
        HierarchicalVQAutoencoder(quantizer=VQ(8, 2), initialization="thumbnail", **WIDTHS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="packs maps of several sizes into channels; choose another regularizer"):
        EQVAE().prepare(tiny())
    with pytest.raises(UserError, match="2 maps of codes have 5 levels, got codebook_levels 4"):
        LatentSpec(channels=5, downsample_factor=4, scaling_factor=1.0, codebook_size=8, codebook_levels=4,
                   codebook_maps=2)  # fmt: skip


@pytest.mark.slow
def test_stores_hold_all_maps_and_tokens_are_their_sequences(image_folder: Path, tmp_path: Path) -> None:
    model = tiny(3)
    model.save_pretrained(tmp_path / "model")
    options = ["--size", "32", "--device", "cpu", "--workers", "0"]
    store, tokens, out = (tmp_path / name for name in ("store", "tokens", "decoded"))
    assert main(["encode", str(tmp_path / "model"), str(image_folder), str(store), "--store", "lean", *options]) == 0
    assert verify_store(store) == []
    opened = LatentStore(store)
    indices = torch.cat(list(opened.indices()))
    maps = opened.spec.index_maps(indices)
    assert [one.shape for one in maps] == [(12, 4, 4), (12, 8, 8), (12, 16, 16)]
    assert main(["decode", str(tmp_path / "model"), str(store), str(out), "--device", "cpu"]) == 0
    assert main(["convert", str(store), str(tokens), "--format", "tokens", "--no-flips"]) == 0
    (file,) = tokens.glob("*.safetensors")
    found = load_file(file)["tokens"]
    assert torch.equal(found.long(), torch.cat([one.flatten(1) for one in maps], dim=1).long())
    about = json.loads((tokens / "ldm_ae.json").read_text())["tokens"]
    assert {name: about[name] for name in ("maps", "levels", "height", "width")} == {
        "maps": 3, "levels": 21, "height": 4, "width": 4,
    }  # fmt: skip
    with pytest.raises(UserError, match="not a HierarchicalQuantizedAutoencoder"):
        export_ldm(model, tmp_path / "ldm.safetensors")
    # A model with other maps does not read them.
    other = tiny(2)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="made by another model"):
        opened.check_model(load_autoencoder(tmp_path / "other"))
