"""Which of several sizes an image is cropped to, and batches of one size each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.data import BucketTransform, ImageTransform, RangeLoader, open_source, sizes_of_area
from ldm_ae.data.batches import Batch
from tests.pictures import smooth_picture


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Ten landscapes, five portraits and five squares, mixed; one that is none."""
    (tmp_path / "mixed").mkdir()
    for i in range(20):
        width, height = {0: (60, 40), 1: (40, 60), 2: (62, 41), 3: (50, 50)}[i % 4]
        smooth_picture(i, width, height).save(tmp_path / f"mixed/{i:03d}.png")
    (tmp_path / "mixed/007.png").write_bytes(b"no picture")
    return tmp_path / "mixed"


def test_bucket_has_the_nearest_aspect_ratio() -> None:
    buckets = BucketTransform([(192, 320), (320, 192), (256, 256), (128, 128)])
    assert buckets.sizes == [(128, 128), (192, 320), (320, 192), (256, 256)]
    chosen = {
        (600, 1000): (192, 320),
        (1000, 600): (320, 192),
        (500, 500): (256, 256),
        # Between 1 and 5/3 lies 1.2910 in the middle: their geometric mean.
        (1000, 1290): (256, 256),
        (1000, 1292): (192, 320),
        (1292, 1000): (320, 192),
        (1, 9): (192, 320),
        # As near to both squares: the largest that need not be enlarged, else the smallest.
        (255, 255): (128, 128),
        (256, 257): (256, 256),
        (100, 100): (128, 128),
    }
    assert {size: buckets.choose(*size) for size in chosen} == chosen
    assert BucketTransform([(320, 192), (192, 320)]).choose(300, 300) == (192, 320)


def test_bucket_crop_equals_the_crop_of_a_single_size() -> None:
    buckets = BucketTransform([(32, 48), (48, 32)], background=(1, 2, 3))
    image = smooth_picture(0, 61, 40)
    expected, found = ImageTransform(size=(32, 48))(image), buckets(image)
    assert torch.equal(found.pixel_values, expected.pixel_values)
    assert found[1:] == expected[1:]
    assert found.crop_ltrb != (0, 0, 61, 40)
    described = buckets.describe()
    assert described.pop("sizes") == [[32, 48], [48, 32]]
    single = ImageTransform(size=(32, 48), background=(1, 2, 3)).describe()
    assert described == {name: value for name, value in single.items() if name != "size"}


def test_bucket_sizes_cover_an_area() -> None:
    assert sizes_of_area(256, 256) == [
        (128, 384), (128, 448), (128, 512), (192, 320), (256, 256), (320, 192), (384, 128), (448, 128), (512, 128),
    ]  # fmt: skip
    sdxl = sizes_of_area(1024, 1024)
    assert {(1024, 1024), (832, 1216), (896, 1152), (768, 1344), (640, 1536), (512, 2048)} <= set(sdxl)
    assert set(sdxl) == {(width, height) for height, width in sdxl}
    for sides, options in {(1024, 1024): {}, (300, 200): {"multiple": 16, "max_ratio": 2.0}}.items():
        found = sizes_of_area(*sides, **options)
        for height, width in found:
            assert height % options.get("multiple", 64) == width % options.get("multiple", 64) == 0
            assert max(height, width) <= options.get("max_ratio", 4.0) * min(height, width)
            assert 0.7 * math.prod(sides) < height * width <= math.prod(sides)
    assert sizes_of_area(64, 64, max_ratio=1.0) == [(64, 64)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sizes_of_area(32, 32), "too small for sides that are multiples of 64"),
        (lambda: sizes_of_area(256, 256, multiple=0), "sides that are multiples of 0 "),
        (lambda: sizes_of_area(256, 256, max_ratio=0.5), "a ratio of at most 0.5;"),
        (lambda: BucketTransform([]), "at least one size"),
        (lambda: BucketTransform([(32, 0)]), "is not positive"),
    ],
)
def test_invalid_sizes_are_refused(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


def load(folder: Path, ranges: list[range], **changes: object) -> tuple[RangeLoader, list[tuple[int, Batch]]]:
    options = {"ranges": ranges, "batch_size": 3} | changes
    transform = BucketTransform([(32, 48), (48, 32), (32, 32)])
    loader = RangeLoader(open_source(str(folder)), transform, **options)  # type: ignore[arg-type]
    return loader, list(loader)


def test_bucket_batches_have_one_size_and_end_with_their_range(mixed_folder: Path) -> None:
    ranges = [range(8), range(12, 20)]
    loader, batches = load(mixed_folder, ranges)
    # In the order in which they are full; what is left of a range comes at its end, the smallest size first.
    assert [(number, batch.indices.tolist()) for number, batch in batches] == [
        (0, [0, 2, 4]), (0, [3]), (0, [6]), (0, [1, 5]),
        (1, [12, 14, 16]), (1, [15, 19]), (1, [18]), (1, [13, 17]),
    ]  # fmt: skip
    assert [batch.pixel_values.shape[2:] for _, batch in batches[:4]] == [(32, 48), (32, 32), (32, 48), (48, 32)]
    assert list(loader.rejected) == ["007.png"]
    source = open_source(str(mixed_folder))
    for _, batch in batches:
        assert batch.keys == [source.key(index) for index in batch.indices.tolist()]
        for row, index in enumerate(batch.indices.tolist()):
            width, height = {0: (60, 40), 1: (40, 60), 2: (62, 41), 3: (50, 50)}[index % 4]
            assert batch.original_sizes[row].tolist() == [height, width]
            expected = ImageTransform(size=tuple(batch.pixel_values.shape[2:]))(smooth_picture(index, width, height))
            assert torch.equal(batch.pixel_values[row], expected.pixel_values)
            assert tuple(batch.crops_ltrb[row].tolist()) == expected.crop_ltrb


def test_bucket_batches_do_not_depend_on_workers_or_other_ranges(mixed_folder: Path) -> None:
    _, alone = load(mixed_folder, [range(8, 20)])
    _, both = load(mixed_folder, [range(8), range(8, 20)], workers=2)
    found = [batch for number, batch in both if number == 1]
    assert len(found) == len(alone)
    for (_, one), other in zip(alone, found, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.pixel_values, other.pixel_values)


def test_pending_images_per_bucket_are_bounded(mixed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_ae.data.ranges._WAITING", 1)
    _, batches = load(mixed_folder, [range(20)], batch_size=4)
    found = [batch.indices.tolist() for _, batch in batches]
    assert sorted(index for indices in found for index in indices) == [i for i in range(20) if i != 7]
    # 1, 3 and 5 wait when 8 and 10 come: five are too many, and of landscapes and portraits there are two each.
    assert found[:2] == [[0, 2, 4, 6], [8, 10]]
    assert max(map(len, found)) <= 4


def test_single_bucket_matches_the_evaluation_loader(mixed_folder: Path) -> None:
    source = open_source(str(mixed_folder))
    loader = RangeLoader(source, ImageTransform(size=32), ranges=[range(10), range(10, 20)], batch_size=4)
    # A bad image makes its batch shorter, and moves none into another.
    assert [(number, batch.indices.tolist()) for number, batch in loader] == [
        (0, [0, 1, 2, 3]), (0, [4, 5, 6]), (0, [8, 9]), (1, [10, 11, 12, 13]), (1, [14, 15, 16, 17]), (1, [18, 19]),
    ]  # fmt: skip


def test_ranges_without_a_good_image_yield_no_batch(mixed_folder: Path) -> None:
    for transform in (ImageTransform(size=32), BucketTransform([(32, 48), (48, 32)])):
        loader = RangeLoader(open_source(str(mixed_folder)), transform, ranges=[range(7, 8), range(8, 9)], batch_size=4)
        assert [(number, batch.keys) for number, batch in loader] == [(1, ["008.png"])]
        assert list(loader.rejected) == ["007.png"]
    assert list(RangeLoader(open_source(str(mixed_folder)), transform, ranges=[], batch_size=4)) == []
