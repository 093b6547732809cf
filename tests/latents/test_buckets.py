"""Stores of several resolutions: written, resumed, verified, read and decoded."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ldm_ae.core.errors import UserError
from ldm_ae.data import BucketTransform, ImageTransform, open_source
from ldm_ae.io.files import write_json
from ldm_ae.latents import (
    BucketBatchSampler,
    EncodeSummary,
    LatentDataset,
    LatentStore,
    decode_store,
    inspect_store,
    verify_store,
)
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.store.files import look_at
from ldm_ae.latents.store.records import recorded
from ldm_ae.models import ChannelStatistics, KLAutoencoder, VQAutoencoder, hash_json
from ldm_ae.quantizers import VQ
from tests.latents.helpers import contents, encode, synthetic_store
from tests.latents.test_processes import encode_together
from tests.latents.test_resume import StoppedError, encoded  # noqa: F401 - a fixture
from tests.pictures import smooth_picture

pytestmark = pytest.mark.slow


def paths(images: Path) -> list[Path]:
    return sorted(images.glob("*/*.png"))


SIZES = [(32, 48), (48, 32), (32, 32)]
TRANSFORM = BucketTransform(SIZES)


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Sixteen images of three shapes, mixed, in classes; the last is smaller than its bucket."""
    root = tmp_path / "mixed"
    for i in range(16):
        width, height = {0: (60, 40), 1: (40, 60), 2: (66, 40), 3: (50, 50)}[i % 4]
        width, height = (20, 20) if i == 15 else (width, height)
        (root / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        smooth_picture(i, width, height).save(root / f"{i % 2}/{i:03d}.png")
    return root


def encode_mixed(model: KLAutoencoder, images: Path, store: Path, **changes: Any) -> EncodeSummary:
    return encode(model, images, store, **({"transform": TRANSFORM, "shard_size": 6} | changes))


@pytest.fixture
def mixed(tiny_model: KLAutoencoder, mixed_folder: Path, tmp_path: Path) -> Path:
    encode_mixed(tiny_model, mixed_folder, tmp_path / "buckets")
    return tmp_path / "buckets"


def test_every_image_is_in_the_bucket_of_its_shape(mixed: Path, mixed_folder: Path, tiny_model: KLAutoencoder) -> None:
    store, data, source = LatentStore(mixed), LatentDataset(mixed), open_source(str(mixed_folder))
    assert store.buckets() == {"32x32": 4, "32x48": 8, "48x32": 4}
    rows = store.good().to_pylist()
    assert [row["key"] for row in rows] == [source.key(i) for i in range(16)]
    for position, row in enumerate(rows):
        size = TRANSFORM.choose(row["height"], row["width"])
        assert row["bucket"] == f"{size[0]}x{size[1]}"
        image = smooth_picture(int(Path(row["key"]).stem), row["width"], row["height"])
        transformed = ImageTransform(size=size)(image)
        assert row["crop"] == list(transformed.crop_ltrb)
        with torch.no_grad():
            moments = tiny_model.encode(transformed.pixel_values[None]).moments
        # Another batch size and memory layout reorder float32 sums.
        torch.testing.assert_close(data.tensors(position, ["moments"])["moments"], moments[0], atol=1e-5, rtol=1e-5)
    for file in mixed.glob("*/*.safetensors"):
        index = load_file(file)["index"].tolist()
        assert index == sorted(index)


def test_each_bucket_folder_is_a_lightningdit_dataset(mixed: Path) -> None:
    for bucket in ("32x32", "32x48", "48x32"):
        names = sorted(path.name for path in (mixed / bucket).iterdir())
        assert names[-1] == "latents_stats.pt"
        assert all(name.startswith("latents_rank00_shard00") for name in names[:-1])
        rows = sum(len(load_file(mixed / bucket / name)["labels"]) for name in names[:-1])
        assert rows == LatentStore(mixed).buckets()[bucket]


def test_statistics_cover_all_resolutions(mixed: Path) -> None:
    statistics = ChannelStatistics(4)
    for file in sorted(mixed.glob("*/*.safetensors")):
        statistics.update(load_file(file)["latents"])
    found = LatentStore(mixed).statistics
    assert found.count == 8 * 8 * 4 + 12 * 8 * 12
    # The same float64 sums in another order.
    assert found.channel_mean.tolist() == pytest.approx(statistics.channel_mean.tolist(), rel=1e-12)
    assert found.channel_std.tolist() == pytest.approx(statistics.channel_std.tolist(), rel=1e-12)


def test_summary_reports_cropped_fractions(tiny_model: KLAutoencoder, mixed_folder: Path, mixed: Path) -> None:
    summary = encode_mixed(tiny_model, mixed_folder, mixed)
    assert summary.already_complete
    assert summary.buckets == LatentStore(mixed).buckets()
    shares = []
    for row in LatentStore(mixed).good().to_pylist():
        left, top, right, bottom = row["crop"]
        shares.append(1 - (right - left) * (bottom - top) / (row["width"] * row["height"]))
    assert summary.crops.mean_fraction == pytest.approx(sum(shares) / 16)
    assert 0.02 < summary.crops.mean_fraction < 0.03
    assert summary.crops.enlarged == 1
    assert inspect_store(mixed)["cropped"] == {"mean_share": summary.crops.mean_fraction, "enlarged": 1}


def stop_after(images: int) -> Any:
    def stop(done: int, total: int) -> None:
        if done >= images:
            raise StoppedError

    return stop


@pytest.mark.parametrize("images", [5, 8, 14, 16])
def test_stopped_encoding_resumes_to_the_same_bytes(
    images: int, tiny_model: KLAutoencoder, mixed_folder: Path, mixed: Path, tmp_path: Path,
    encoded: list[str],  # noqa: F811
) -> None:  # fmt: skip
    again = tmp_path / "again"
    with pytest.raises(StoppedError):
        encode_mixed(tiny_model, mixed_folder, again, progress=stop_after(images))
    done = len(recorded(again))
    assert done == images // 6
    encoded.clear()
    encode_mixed(tiny_model, mixed_folder, again)
    assert len(encoded) == 16 - 6 * done
    assert contents(again) == contents(mixed)
    assert verify_store(again) == []


def test_range_with_a_damaged_shard_is_encoded_again(
    tiny_model: KLAutoencoder, mixed_folder: Path, mixed: Path, tmp_path: Path, encoded: list[str]  # noqa: F811
) -> None:  # fmt: skip
    again = tmp_path / "again"
    with pytest.raises(StoppedError):
        encode_mixed(tiny_model, mixed_folder, again, progress=stop_after(14))
    shard = sorted((again / "48x32").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    encoded.clear()
    encode_mixed(tiny_model, mixed_folder, again)
    assert len(encoded) == 16 - 6
    assert contents(again) == contents(mixed)


def test_image_with_a_new_shape_changes_its_bucket(
    tiny_model: KLAutoencoder, mixed_folder: Path, mixed: Path, tmp_path: Path, encoded: list[str]  # noqa: F811
) -> None:  # fmt: skip
    for key in [row["key"] for row in LatentStore(mixed).good().to_pylist() if row["bucket"] == "32x32"]:
        smooth_picture(0, 60, 40).save(mixed_folder / key)
    encoded.clear()
    assert not encode_mixed(tiny_model, mixed_folder, mixed).already_complete
    encode_mixed(tiny_model, mixed_folder, tmp_path / "fresh")
    # The folder of a size that no image has any more is gone, as it is never made in a new store.
    assert not (mixed / "32x32").exists()
    assert contents(mixed) == contents(tmp_path / "fresh")
    assert verify_store(mixed) == []


def test_statistics_of_a_lean_store_are_redrawn_per_size(
    tiny_model: KLAutoencoder, mixed_folder: Path, tmp_path: Path, encoded: list[str]  # noqa: F811
) -> None:  # fmt: skip
    encode_mixed(tiny_model, mixed_folder, tmp_path / "lean", content="lean")
    smooth_picture(77, 60, 40).save(paths(mixed_folder)[0])
    encoded.clear()
    encode_mixed(tiny_model, mixed_folder, tmp_path / "lean", content="lean")
    assert len(encoded) == 6
    encode_mixed(tiny_model, mixed_folder, tmp_path / "fresh", content="lean")
    assert contents(tmp_path / "lean") == contents(tmp_path / "fresh")


def test_latents_do_not_depend_on_the_number_of_processes(
    tiny_model: KLAutoencoder, mixed_folder: Path, mixed: Path, tmp_path: Path
) -> None:
    encode_together(2, tiny_model, mixed_folder, tmp_path / "two", transform=TRANSFORM, shard_size=6)
    assert verify_store(tmp_path / "two") == []
    assert (tmp_path / "two/stats.json").read_bytes() == (mixed / "stats.json").read_bytes()
    tables = [pq.read_table(path / "index.parquet").drop_columns(["shard"]) for path in (mixed, tmp_path / "two")]
    assert tables[0].equals(tables[1])
    one, two = LatentDataset(mixed), LatentDataset(tmp_path / "two")
    for position in range(16):
        found, other = (data.tensors(position, one.tensor_names) for data in (one, two))
        assert all(torch.equal(tensor, other[name]) for name, tensor in found.items())


def test_bucket_sizes_are_part_of_the_request(tiny_model: KLAutoencoder, mixed_folder: Path, mixed: Path) -> None:
    before = contents(mixed)
    with pytest.raises(UserError, match="made with transform"):
        encode_mixed(tiny_model, mixed_folder, mixed, transform=BucketTransform(SIZES[:2]))
    with pytest.raises(UserError, match="made with transform"):
        encode_mixed(tiny_model, mixed_folder, mixed, transform=ImageTransform(size=32))
    reordered = BucketTransform([*reversed(SIZES), SIZES[0]])
    assert encode_mixed(tiny_model, mixed_folder, mixed, transform=reordered).already_complete
    assert contents(mixed) == before
    assert LatentStore(mixed).request.transform["sizes"] == [[32, 32], [32, 48], [48, 32]]


def test_invalid_sizes_leave_no_folder(tiny_model: KLAutoencoder, mixed_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="height x width 30x48 is not divisible"):
        encode_mixed(tiny_model, mixed_folder, tmp_path / "store", transform=BucketTransform([(32, 32), (30, 48)]))
    assert not (tmp_path / "store").exists()


def test_statistics_with_a_wrong_count_are_detected(mixed: Path) -> None:
    description = json.loads((mixed / "store.json").read_text())
    content = json.loads((mixed / "stats.json").read_text())
    content["state"]["count"] -= 32
    write_json(mixed / "stats.json", content)
    description["files"]["stats.json"] = look_at(mixed / "stats.json")._asdict()
    del description["checksum"]
    write_json(mixed / "store.json", description | {"checksum": hash_json(description)})
    assert verify_store(mixed) == ["stats.json counts 1376 values per channel, the images have 1408"]


def test_images_are_decoded_at_their_encoded_size(mixed: Path, tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    assert decode_store(tiny_model, mixed, tmp_path / "out", batch_size=3, device="cpu") == 16
    for row in LatentStore(mixed).good().to_pylist():
        with Image.open(tmp_path / "out" / row["key"]) as image:
            assert f"{image.height}x{image.width}" == row["bucket"]
    assert decode_store(tiny_model, mixed, tmp_path / "few", batch_size=3, limit=4, device="cpu") == 4
    first = [str(tmp_path / "few" / row["key"]) for row in LatentStore(mixed).good().to_pylist()[:4]]
    assert sorted(map(str, (tmp_path / "few").rglob("*.png"))) == sorted(first)
    with pytest.raises(UserError, match="limit is 0; it must be at least 1"):
        decode_store(tiny_model, mixed, tmp_path / "none", limit=0, device="cpu")


def test_single_size_formats_refuse_several_sizes(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads images of one resolution, .* has 32x32, 32x48, 48x32; choose one"):
        convert_store(mixed, tmp_path / "mar", "mar")
    assert convert_store(mixed, tmp_path / "mar", "mar", bucket="32x48").images == LatentStore(mixed).buckets()["32x48"]
    assert convert_store(mixed, tmp_path / "kohya", "kohya", arch="sd").images == 16


def test_original_crops_of_one_bucket_are_reproduced(mixed: Path, mixed_folder: Path, tmp_path: Path) -> None:
    source = open_source(str(mixed_folder))
    convert_store(mixed, tmp_path / "repa", "repa", bucket="48x32", images=source)
    rows = [row for row in LatentStore(mixed).good().to_pylist() if row["bucket"] == "48x32"]
    found = sorted((tmp_path / "repa").glob("images/*/*.png"))
    assert len(found) == len(rows) == 4
    for path, row in zip(found, rows, strict=True):
        original = smooth_picture(int(Path(row["key"]).stem), row["width"], row["height"])
        pixel_values = ImageTransform(size=(48, 32))(original).pixel_values
        with Image.open(path) as image:
            expected = ((pixel_values + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("content", ["full", "lean"])
def test_indices_of_several_sizes_are_stored(content: str, mixed_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQAutoencoder(
        quantizer=VQ(codebook_size=32, codebook_dim=4), block_out_channels=(8, 16, 16), layers_per_block=1,
        norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip
    encode(model, mixed_folder, tmp_path / "codes", transform=TRANSFORM, shard_size=6, content=content)
    assert verify_store(tmp_path / "codes") == []
    data = LatentDataset(tmp_path / "codes", draw="indices")
    for batch in DataLoader(data, batch_sampler=BucketBatchSampler(data, 3)):
        assert batch["indices"].dtype == torch.int64
    assert {tuple(data[i]["indices"].shape) for i in range(16)} == {(8, 8), (8, 12), (12, 8)}
    for path in paths(mixed_folder)[:6]:  # one file's images change, and only they are encoded again
        smooth_picture(77, 60, 40).save(path)
    assert not encode(
        model, mixed_folder, tmp_path / "codes", transform=TRANSFORM, shard_size=6, content=content
    ).already_complete
    encode(model, mixed_folder, tmp_path / "fresh", transform=TRANSFORM, shard_size=6, content=content)
    assert contents(tmp_path / "codes") == contents(tmp_path / "fresh")


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.fixture
def data(tmp_path: Path) -> LatentDataset:
    synthetic_store(tmp_path / "synthetic", buckets={"16x32": 23, "32x16": 9, "16x16": 4}, shard=5)
    return LatentDataset(tmp_path / "synthetic")


def bucket_of(data: LatentDataset, position: int) -> str:
    return str(data.store.good()["bucket"][position])


def epoch(data: LatentDataset, number: int = 0, **options: Any) -> list[list[int]]:
    sampler = BucketBatchSampler(data, **({"batch_size": 4} | options))
    sampler.set_epoch(number)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    return batches


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    return [position for batch in batches for position in batch]


def test_batches_have_one_resolution_and_cover_every_image_once(data: LatentDataset) -> None:
    batches = epoch(data)
    assert sorted(flat(batches)) == list(range(36))
    for batch in batches:
        assert len({bucket_of(data, position) for position in batch}) == 1
    assert sorted(map(len, batches)) == [1, 3, *[4] * 8]
    assert epoch(data) == batches
    # The resolutions are mixed, and so are the images within one.
    resolutions = [bucket_of(data, batch[0]) for batch in batches]
    assert sum(one != other for one, other in itertools.pairwise(resolutions)) > 2
    assert flat(batches) != sorted(flat(batches))
    for other in (epoch(data, 1), epoch(data, seed=1)):
        assert other != batches
        assert sorted(flat(other)) == list(range(36))


def test_sampler_without_shuffling_and_with_drop_last(data: LatentDataset) -> None:
    assert flat(epoch(data, shuffle=False)) == [*range(32, 36), *range(23), *range(23, 32)]
    assert flat(epoch(data, 5, shuffle=False)) == flat(epoch(data, shuffle=False))
    full = epoch(data, drop_last=True)
    assert [len(batch) for batch in full] == [4] * 8
    assert len(set(flat(full))) == 32
    assert set(flat(full)) != set(flat(epoch(data, 1, drop_last=True)))


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 4), (3, 2), (4, 4), (4, 3), (2, 1)])
def test_ranks_have_equal_step_counts_and_sizes(world_size: int, batch_size: int, tmp_path: Path) -> None:
    synthetic_store(tmp_path / "store", buckets={"16x32": 26, "32x16": 14, "16x16": 4}, shard=50)
    data = LatentDataset(tmp_path / "store")
    ranks = [epoch(data, rank=rank, world_size=world_size, batch_size=batch_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(flat(flat(ranks))) == list(range(44))  # type: ignore[arg-type]
    for step in zip(*ranks, strict=True):
        sizes = [len(batch) for batch in step]
        assert min(sizes) >= 1
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert len({bucket_of(data, position) for position in flat(step)}) == 1


def test_too_few_images_for_all_ranks_are_refused(data: LatentDataset) -> None:
    with pytest.raises(UserError, match=r"has 4 images of 16x16, which leaves 4 for a step of 5 processes"):
        BucketBatchSampler(data, 4, world_size=5)
    with pytest.raises(UserError, match=r"has 23 images of 16x32, which leaves 1 for a step of 2 processes"):
        BucketBatchSampler(data, 1, world_size=2)
    ranks = [epoch(data, rank=rank, world_size=5, drop_last=True) for rank in range(5)]
    assert [[len(batch) for batch in batches] for batches in ranks] == [[4]] * 5
    for wrong in ({"batch_size": 0}, {"rank": 2, "world_size": 2}, {"seed": -1}):
        with pytest.raises(UserError, match="is not valid: a batch has at least one image"):
            BucketBatchSampler(data, **({"batch_size": 1} | wrong))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_with_the_sampler_yields_batches_of_one_shape(workers: int, data: LatentDataset) -> None:
    sampler = BucketBatchSampler(data, 4)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    shapes = set()
    keys: list[str] = []
    for batch, positions in zip(loader, list(sampler), strict=True):
        assert batch["latents"].shape[0] == len(positions)
        shapes.add(tuple(batch["latents"].shape[1:]))
        keys += batch["key"]
        assert torch.equal(batch["latents"][0], data[positions[0]]["latents"])
    assert shapes == {(4, 4, 8), (4, 8, 4), (4, 4, 4)}
    assert sorted(keys) == sorted(data.store.good()["key"].to_pylist())


def test_loader_without_the_sampler_is_refused_with_a_fix(data: LatentDataset) -> None:
    with pytest.raises(UserError, match=r"a batch holds images of 16x32 and 32x16; .*BucketBatchSampler"):
        list(DataLoader(data, batch_size=5))


def test_reading_an_item_maps_the_file_without_copying(data: LatentDataset) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc")
    tensor = data._tensor(data._files[0], "latents")
    ranges = [line.split() for line in maps.read_text().splitlines() if line.endswith(data._files[0])]
    # The tensor's memory is the file: if the library copied it, every worker would hold all shards that it has met.
    bounds = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in ranges]
    assert any(start <= tensor.data_ptr() < end for start, end in bounds)
    item = data[0]["latents"]
    item.fill_(math.pi)
    assert not torch.equal(data[0]["latents"], item)
