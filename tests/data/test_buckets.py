"""Several sizes in training: every step has one size, and the stream is a function of seed and position alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_ae.core.errors import RunError, UserError
from ldm_ae.data import Batch, BucketTransform, RawImage, Source, TrainingLoader, open_source
from ldm_ae.data.buckets import BucketSampler, find_buckets
from ldm_ae.data.config import DataConfig
from ldm_ae.data.sources.folder import FolderSource
from ldm_ae.images.decoding import Decoding
from tests.pictures import smooth_picture

SIZES = [(16, 24), (24, 16), (16, 16)]
RANDOM = BucketTransform(SIZES, crop="random", flip=True)
SHAPES = {0: (70, 40), 1: (40, 70), 2: (72, 41), 3: (50, 60)}
"""(width, height) of image i, by i modulo 4: eight landscapes, four portraits, four squares."""


@pytest.fixture
def source(tmp_path: Path) -> Source:
    for i in range(16):
        smooth_picture(i, *SHAPES[i % 4]).save(tmp_path / f"{i:03d}.png")
    return open_source(tmp_path)


def size_of(index: int) -> tuple[int, int]:
    return {0: (16, 24), 1: (24, 16), 2: (16, 24), 3: (16, 16)}[index % 4]


def steps(
    source: Source, *, world_size: int = 1, steps: int = 12, position: int = 0, **options: object
) -> Iterator[list[Batch]]:
    """The micro-batches of each step in their global order, from the loaders of all ranks."""
    loaders = [
        TrainingLoader(source, RANDOM, seed=3, rank=rank, world_size=world_size, **{"batch_size": 4, **options})
        for rank in range(world_size)
    ]
    for parts in islice(zip(*(loader.steps(position) for loader in loaders), strict=True), steps):
        yield [batch for micro in zip(*parts, strict=True) for batch in micro]


def stream(source: Source, **options: object) -> list[tuple]:
    return [
        (index, seed, pixels)
        for step in steps(source, **options)
        for batch in step
        for index, seed, pixels in zip(batch.indices.tolist(), batch.seeds.tolist(), batch.pixel_values, strict=True)
    ]


def assert_equal_streams(first: list[tuple], second: list[tuple]) -> None:
    assert [sample[:2] for sample in first] == [sample[:2] for sample in second]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True))


def test_every_step_has_images_of_one_size_cropped_to_it(source: Source) -> None:
    found = Counter()
    for step in steps(source, world_size=2, accumulation=2, batch_size=1, steps=16):
        assert len(step) == 4
        (size,) = {tuple(batch.pixel_values.shape[2:]) for batch in step}
        assert all(size_of(index) == size for batch in step for index in batch.indices.tolist())
        found[size] += 1
    assert found == {(16, 24): 8, (24, 16): 4, (16, 16): 4}  # four epochs of four steps, in proportion to the images


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 2},
        {"batch_size": 2, "accumulation": 2},
        {"batch_size": 2, "world_size": 2},
        {"batch_size": 1, "world_size": 2, "accumulation": 2, "workers": 1},
    ],
)
def test_samples_do_not_depend_on_workers_ranks_or_accumulation(source: Source, options: dict) -> None:
    assert_equal_streams(stream(source), stream(source, **options))


@pytest.mark.parametrize("batch_size", [3, 4, 7])
def test_resumed_stream_equals_the_uninterrupted_one_at_every_step(source: Source, batch_size: int) -> None:
    whole = stream(source, batch_size=batch_size, steps=14)
    for step in range(12):
        resumed = stream(source, batch_size=batch_size, steps=2, position=step * batch_size)
        assert_equal_streams(whole[step * batch_size : (step + 2) * batch_size], resumed)


def test_images_that_do_not_fill_a_step_are_carried_over(source: Source) -> None:
    """Of every size, the stream is permutation after permutation of its images; nothing is dropped or duplicated."""
    images: dict[tuple[int, int], list[int]] = {}
    for (batch,) in steps(source, batch_size=3, steps=32):
        images.setdefault(size_of(int(batch.indices[0])), []).extend(batch.indices.tolist())
    assert sum(map(len, images.values())) == 96
    for size, found in images.items():
        members = [index for index in range(16) if size_of(index) == size]
        epochs = [found[start : start + len(members)] for start in range(0, len(found), len(members))]
        assert all(sorted(epoch) == members for epoch in epochs[:-1])
        assert len(set(epochs[-1])) == len(epochs[-1])
        assert len(epochs) in (6, 7), "six epochs of the data set, but for one step"


def test_augmentation_differs_between_epochs_and_images(source: Source) -> None:
    samples = stream(source, steps=8)
    assert len({seed for _, seed, _ in samples}) == 32
    first, second = ({index: pixels for index, _, pixels in part} for part in (samples[:16], samples[16:]))
    assert sum(torch.equal(first[i], second[i]) for i in range(16)) < 5


def test_order_of_sizes_matches_recorded_values(source: Source) -> None:
    """Golden values: a change here means that no old run with several sizes can be resumed, and needs a reason."""
    found = [(tuple(batch.pixel_values.shape[2:]), batch.indices.tolist()) for (batch,) in steps(source, steps=5)]
    assert found == [
        ((16, 24), [4, 12, 2, 14]), ((24, 16), [1, 13, 9, 5]), ((16, 24), [6, 8, 0, 10]), ((16, 16), [15, 7, 3, 11]),
        ((16, 24), [14, 2, 8, 10]),
    ]  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    batch_size=st.integers(1, 9),
    start=st.integers(0, 200),
)
def test_stream_is_exact_for_any_number_of_images(counts: list[int], batch_size: int, start: int) -> None:
    ends = np.cumsum(counts)
    members = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    options = {"batch_size": batch_size, "accumulation": 1, "rank": 0, "world_size": 1}
    first = list(islice(BucketSampler(members, 5, 0, **options), start + 20))
    assert first[start:] == list(islice(BucketSampler(members, 5, start, **options), 20))
    taken: dict[int, list[tuple[int, int]]] = {}
    for batch in first:
        (bucket,) = {int(np.searchsorted(ends, index, side="right")) for _, index in batch}
        taken.setdefault(bucket, []).extend(batch)
    for bucket, samples in taken.items():
        assert [epoch for epoch, _ in samples] == [place // counts[bucket] for place in range(len(samples))]
        assert len(set(samples)) == len(samples), "an image twice in an epoch of its size"
    # Each size has its share of the epochs that are complete, but for less than a step.
    for bucket, count in enumerate(counts):
        share = len(first) * batch_size * count / sum(counts)
        room = batch_size * (len(counts) + 1) + count
        assert abs(len(taken.get(bucket, [])) - share) <= room


def test_far_position_is_reached_at_once(source: Source) -> None:
    far = 10**9
    assert_equal_streams(stream(source, position=4 * far, steps=1), stream(source, position=4 * (far - 1), steps=2)[4:])


def test_sizes_are_read_without_decoding_pixels(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "__call__", lambda *_: pytest.fail("decoded"))
    done = []
    loader = TrainingLoader(source, RANDOM, batch_size=4, seed=0, progress=done.append)
    assert loader.buckets is not None
    assert dict(zip(loader.buckets.names, map(len, loader.buckets.members), strict=True)) == {
        "16x16": 4, "16x24": 8, "24x16": 4,
    }  # fmt: skip
    assert done == [16]


def test_assignment_is_identified(source: Source, tmp_path: Path) -> None:
    indices = np.arange(16)
    before = find_buckets(source, indices, RANDOM).identity()
    assert before == find_buckets(source, indices, RANDOM, workers=2).identity()
    assert before != find_buckets(source, indices, BucketTransform(SIZES[:2])).identity()
    smooth_picture(0, 40, 60).save(tmp_path / "000.png")  # as many images of every size, other ones
    smooth_picture(1, 60, 40).save(tmp_path / "001.png")
    after = find_buckets(open_source(tmp_path), indices, RANDOM)
    assert [len(members) for members in after.members] == [4, 8, 4]
    assert after.identity() != before


def test_image_with_a_bad_header_is_reported_once_and_never_drawn(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "004.png").write_bytes(b"not an image")
    with caplog.at_level(logging.WARNING, "ldm_ae"):
        samples = stream(source, world_size=2, batch_size=2, steps=8, max_bad_fraction=0.1)
    assert 4 not in {index for index, *_ in samples}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("skipped 004.png: not an image of a known format")
    with pytest.raises(UserError, match=r"1 of 16 images \(6.2%\) cannot be used.*\nthe first: 004.png: not an image"):
        TrainingLoader(source, RANDOM, batch_size=2, seed=0, max_bad_fraction=0.05)


def truncate(path: Path) -> None:
    """Damage the pixels, and keep the header."""
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.slow
def test_damaged_pixels_are_replaced_by_an_image_of_the_same_size(source: Source, tmp_path: Path) -> None:
    truncate(tmp_path / "004.png")
    found = list(steps(source, steps=16, max_bad_fraction=0.1))
    drawn = [index for (batch,) in found for index in batch.indices.tolist()]
    assert 4 not in drawn
    assert all(size_of(int(i)) == tuple(batch.pixel_values.shape[2:]) for (batch,) in found for i in batch.indices)
    assert {key for (batch,) in found for key in batch.rejected} == {"004.png"}
    assert_equal_streams(
        stream(source, steps=16, max_bad_fraction=0.1),
        stream(source, steps=16, max_bad_fraction=0.1, world_size=2, batch_size=2, workers=1),
    )


def test_size_whose_images_are_all_damaged_uses_images_of_other_sizes(source: Source, tmp_path: Path) -> None:
    for i in (1, 5, 9, 13):
        truncate(tmp_path / f"{i:03d}.png")
    found = list(steps(source, steps=8, max_bad_fraction=0.3))
    portraits = [batch for (batch,) in found if tuple(batch.pixel_values.shape[2:]) == (24, 16)]
    assert len(portraits) == 2
    assert all(size_of(index) != (24, 16) for batch in portraits for index in batch.indices.tolist())


def test_data_set_without_a_valid_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"none of the 1 images can be used; the first: a.png: not an image"):
        TrainingLoader(open_source(tmp_path), RANDOM, batch_size=1, seed=0, max_bad_fraction=1)


class Failing(FolderSource):
    """Fails where a header is read."""

    def open_image(self, index: int):
        raise KeyError(f"a defect at {index}")

    def __getitem__(self, index: int) -> RawImage:
        raise AssertionError(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_unexpected_error_while_reading_headers_names_the_image(source: Source, tmp_path: Path, workers: int) -> None:
    failing = Failing(tmp_path, [source.key(i) for i in range(3)])
    message = r"^000.png: unexpected KeyError while reading this image: 'a defect at 0'$"
    with pytest.raises(RunError, match=message):
        TrainingLoader(failing, RANDOM, batch_size=1, seed=0, workers=workers)


def test_cache_serves_all_sizes(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stream(source, steps=8)
    calls = []
    plain = Decoding.__call__
    monkeypatch.setattr(Decoding, "__call__", lambda *a: calls.append(1) or plain(*a))
    assert_equal_streams(stream(source, steps=8, cache_bytes=10**8), expected)
    assert len(calls) == 16
    calls.clear()
    stream(source, steps=8, cache_bytes=2 * 72 * 41 * 3)  # room for two of them, whatever their size
    assert len(calls) == 32 - 2


# The configuration


def test_configuration_gives_the_sizes_of_encode() -> None:
    assert DataConfig(train="x", resolution=64).training_sizes() == [(64, 64)]
    listed = DataConfig(train="x", sizes=["192x320", "256x256", "320x192"])
    assert listed.training_sizes() == [(192, 320), (320, 192), (256, 256)]
    assert listed.training_sizes() == DataConfig(train="x", sizes="256x256, 192x320,320x192").training_sizes()
    area = DataConfig(train="x", area="256x256", multiple=32, max_ratio=2.0)
    assert len(area.training_sizes()) > 3
    assert all(h % 32 == w % 32 == 0 and max(h, w) <= 2 * min(h, w) for h, w in area.training_sizes())
    transform = DataConfig(train="x", area="128x128", max_pixels=10**6, colour_profiles="ignore").training_transform()
    described = transform.describe()
    assert (described["crop"], described["flip"], described["max_pixels"]) == ("random", True, 10**6)
    assert "colour_profiles" not in described
    assert listed.validation_transform().sizes == [(256, 256)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple": 32}, "data.multiple and data.max_ratio have no effect without data.area"),
        ({"sizes": "64x64", "max_ratio": 2.0}, "have no effect without data.area"),
        ({"sizes": "64x64", "area": "64x64"}, "data.area and data.sizes exclude each other; set one of them to null"),
        ({"sizes": "64x64", "resize": 64}, "data.resize and data.sizes exclude each other"),
        (
            {"area": "64x64", "crop": "adm"},
            "data.crop adm takes one square, not data.area; set data.crop",
        ),
        ({"sizes": "64"}, "data.sizes has '64'; give height x width in pixels, such as 256x192"),
        ({"sizes": []}, "there must be at least one size"),
        ({"sizes": "0x64"}, "image size 64x0 is not positive"),
        ({"area": "32x32"}, "an area of 32x32 is too small for sides that are multiples of 64"),
    ],
)
def test_configuration_refuses_options_that_contradict(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(train="x", **options)


def test_configuration_warns_of_sizes_with_fewer_images_than_a_step(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(train=str(tmp_path), sizes="16x24,24x16,16x16", workers=0, validation_images=0)
    with caplog.at_level(logging.WARNING, "ldm_ae"):
        config.loaders(batch_size=4, accumulation=1, seed=0, rank=0, world_size=1)
        assert not caplog.records
        config.loaders(batch_size=4, accumulation=2, seed=0, rank=0, world_size=1)
    assert "2 of 3 sizes have fewer images than a step, 8" in caplog.text
    assert "with other crops: 16x16 (4), 24x16 (4). To avoid it" in caplog.text
