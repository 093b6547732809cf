"""Stores of only latents and of only moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentDataset, LatentStore, inspect_store, verify_store
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.conversion.import_store import import_latents
from ldm_ae.models import GaussianPosterior, KLAutoencoder
from tests.latents.helpers import contents, encode
from tests.pictures import smooth_picture

SMALL = {"labels", "index", "original_size", "crop_ltrb"}


def tensors(store: Path) -> dict[str, torch.Tensor]:
    shards = [load_file(path) for path in sorted(store.glob("32x32/*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def test_samples_store_has_only_latents(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    encode(tiny_model, image_folder, tmp_path / "samples", content="samples")
    full, samples = tensors(store), tensors(tmp_path / "samples")
    assert samples.keys() == SMALL | {"latents", "latents_flip"}
    assert all(torch.equal(value, full[name]) for name, value in samples.items())
    assert (tmp_path / "samples/stats.json").read_bytes() == (store / "stats.json").read_bytes()
    assert verify_store(tmp_path / "samples") == []
    assert inspect_store(tmp_path / "samples")["content"] == "samples"
    assert torch.equal(LatentDataset(tmp_path / "samples")[3]["latents"], full["latents"][3])
    with pytest.raises(UserError, match="no moments to draw from"):
        LatentDataset(tmp_path / "samples", draw="sample")


@pytest.mark.parametrize("latents", ["sample", "mode"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_lean_store_has_only_moments(
    latents: str, dtype: str, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    encode(tiny_model, image_folder, tmp_path / "full", latents=latents, dtype=dtype)
    encode(tiny_model, image_folder, tmp_path / "lean", latents=latents, dtype=dtype, content="lean")
    full, lean = tensors(tmp_path / "full"), tensors(tmp_path / "lean")
    assert lean.keys() == SMALL | {"moments", "moments_flip"}
    assert all(torch.equal(value, full[name]) for name, value in lean.items())
    assert verify_store(tmp_path / "lean") == []
    # In bfloat16 the moments are rounded before the draw here and the draw after it there: 8 bits, over 768 values.
    tolerance = 1e-6 if dtype == "fp32" else 1e-3
    ours, theirs = (LatentStore(tmp_path / name).statistics for name in ("lean", "full"))
    torch.testing.assert_close(ours.channel_mean, theirs.channel_mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(ours.channel_std, theirs.channel_std, atol=tolerance, rtol=tolerance)
    assert ours.count == theirs.count == 12 * 8 * 8
    data = LatentDataset(tmp_path / "lean", draw="mode", flip="half")
    assert data.read(5).equal(full["moments"][5, :4].float())
    with pytest.raises(UserError, match="holds moments, no samples; use draw sample or mode"):
        LatentDataset(tmp_path / "lean")[0]


def test_lean_store_roundtrips_through_conversion(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    encode(tiny_model, image_folder, tmp_path / "lean", content="lean")
    convert_store(tmp_path / "lean", tmp_path / "converted", "lightningdit")
    import_latents(tmp_path / "converted", tmp_path / "back")
    assert verify_store(tmp_path / "back") == []
    drawn = LatentDataset(tmp_path / "lean", draw="sample", seed=0)
    back = {item["key"]: item["latents"] for item in map(LatentDataset(tmp_path / "back").__getitem__, range(12))}
    assert all(torch.equal(back[drawn[i]["key"]], drawn[i]["latents"]) for i in range(12))


@pytest.mark.slow
def test_changed_image_in_a_lean_store_is_encoded_again(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    encode(tiny_model, image_folder, tmp_path / "lean", content="lean")
    assert encode(tiny_model, image_folder, tmp_path / "lean", content="lean").already_complete
    smooth_picture(99, 48, 48).save(sorted(image_folder.glob("*/*.png"))[7])
    assert not encode(tiny_model, image_folder, tmp_path / "lean", content="lean").already_complete
    encode(tiny_model, image_folder, tmp_path / "fresh", content="lean")
    assert contents(tmp_path / "lean") == contents(tmp_path / "fresh")
    with pytest.raises(UserError, match=r'made with content "lean" \(now "full"\)'):
        encode(tiny_model, image_folder, tmp_path / "lean")


def test_unknown_content_is_refused(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="content is 'fat'; it must be full, samples or lean"):
        encode(tiny_model, image_folder, tmp_path / "store", content="fat")
    assert not (tmp_path / "store").exists()


class Point(GaussianPosterior):
    moments = None  # type: ignore[assignment]


class Deterministic(KLAutoencoder):
    """Its posterior is a point."""

    class_names = ()
    has_moments = False

    def encode(self, pixel_values: torch.Tensor) -> GaussianPosterior:
        return Point(super().encode(pixel_values).moments)


def test_lean_store_is_refused_for_a_model_without_moments(image_folder: Path, tmp_path: Path) -> None:
    model = Deterministic(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    with pytest.raises(UserError, match="a lean store holds moments or indices, and AutoencoderKL has none"):
        encode(model, image_folder, tmp_path / "lean", content="lean")
    assert not (tmp_path / "lean").exists()
    encode(model, image_folder, tmp_path / "full")
    assert tensors(tmp_path / "full").keys() == SMALL | {"latents", "latents_flip"}
    assert verify_store(tmp_path / "full") == []
