"""The stream is a function of seed and position: not of workers, processes, accumulation or where it was resumed."""

from __future__ import annotations

import logging
import multiprocessing
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import RunError, UserError
from ldm_ae.data import (
    Decoding,
    EvaluationLoader,
    ImageTransform,
    RangeLoader,
    RawImage,
    Source,
    Subset,
    TrainingLoader,
    open_source,
    seeded_noise,
    split_holdout,
)
from ldm_ae.data.sources.folder import FolderSource

RANDOM = ImageTransform(size=16, crop="random", flip=True)
RANDOM_FREE = ImageTransform(size=16)


@pytest.fixture
def source(image_folder: Path) -> Source:
    """Twelve good images."""
    return open_source(image_folder)


def spoil(folder: Path, *names: str) -> None:
    """Add files that are not images."""
    for name in names:
        (folder / name).write_bytes(b"not an image")


def stream(source: Source, *, world_size: int = 1, steps: int = 5, position: int = 0, **options: object) -> list[tuple]:
    """(index, seed, pixels) of the global stream's samples in its order, put together from all ranks."""
    batch_size = options.setdefault("batch_size", 4)
    samples = []
    loaders = [
        TrainingLoader(source, RANDOM, seed=3, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    for parts in islice(zip(*(loader.steps(position) for loader in loaders), strict=True), steps):
        for micro in zip(*parts, strict=True):  # micro-batch j of every rank
            for batch in micro:
                assert len(batch) == batch_size
                samples += list(zip(batch.indices.tolist(), batch.seeds.tolist(), batch.pixel_values, strict=True))
    return samples


def assert_equal_streams(first: list[tuple], second: list[tuple]) -> None:
    assert [sample[:2] for sample in first] == [sample[:2] for sample in second]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 8, "workers": 2},
        {"batch_size": 4, "accumulation": 2},
        {"batch_size": 4, "world_size": 2},
        {"batch_size": 2, "world_size": 2, "accumulation": 2, "workers": 1},
        {"batch_size": 1, "accumulation": 8},
    ],
)
def test_samples_do_not_depend_on_workers_ranks_or_batch_size(source: Source, options: dict) -> None:
    assert_equal_streams(stream(source, batch_size=8), stream(source, **options))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("position", [8, 24, 5, 1000 * 12 + 7])
def test_resumed_stream_equals_the_uninterrupted_one(source: Source, position: int, workers: int) -> None:
    if position < 1000:
        whole = stream(source, steps=14)
    else:  # far away, against the same place reached with another step size
        whole = [None] * (position - 1) + stream(source, steps=14, position=position - 1, batch_size=1)
    resumed = stream(source, steps=3, position=position, workers=workers)
    assert_equal_streams(whole[position : position + 12], resumed)


def test_epochs_visit_each_image_exactly_once(source: Source) -> None:
    indices = [sample[0] for sample in stream(source, batch_size=5, steps=12)]  # 60 samples, batches straddle epochs
    epochs = [indices[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5, "every epoch has an order of its own"


def test_batch_may_exceed_the_dataset_size(source: Source) -> None:
    indices = [sample[0] for sample in stream(source, batch_size=30, steps=2)]
    assert all(sorted(indices[start : start + 12]) == list(range(12)) for start in range(0, 60, 12))


def test_seed_changes_order_and_randomness(source: Source) -> None:
    first, second = (next(TrainingLoader(source, RANDOM, batch_size=12, seed=seed).steps())[0] for seed in (1, 2))
    assert first.indices.tolist() != second.indices.tolist()
    assert not set(first.seeds.tolist()) & set(second.seeds.tolist())


def test_augmentation_differs_between_epochs(source: Source) -> None:
    samples = stream(source, batch_size=12, steps=2)
    first, second = ({index: pixels for index, _, pixels in part} for part in (samples[:12], samples[12:]))
    assert sum(torch.equal(first[i], second[i]) for i in range(12)) < 4
    assert len({seed for _, seed, _ in samples}) == 24


def test_sample_order_matches_recorded_values(source: Source) -> None:
    """Golden values: a change here means that no old run can be resumed, and needs a reason."""
    batch = next(TrainingLoader(source, RANDOM, batch_size=12, seed=0).steps())[0]
    assert batch.indices.tolist() == GOLDEN_ORDER
    assert batch.seeds[0].item() == GOLDEN_SEED


GOLDEN_ORDER = [0, 1, 9, 4, 11, 2, 3, 6, 8, 7, 10, 5]
GOLDEN_SEED = 7425240232160906449


def test_global_random_state_is_untouched(source: Source) -> None:
    before = torch.random.get_rng_state()
    for workers in (0, 1):
        next(TrainingLoader(source, RANDOM, batch_size=2, seed=0, workers=workers).steps())
        list(EvaluationLoader(source, RANDOM, batch_size=8, workers=workers))
    assert torch.equal(before, torch.random.get_rng_state())


def test_loader_restricts_to_given_indices(source: Source) -> None:
    loader = TrainingLoader(source, RANDOM, batch_size=6, seed=0, indices=[1, 4, 7])
    assert sorted(next(loader.steps())[0].indices.tolist()) == [1, 1, 4, 4, 7, 7]
    assert loader.epoch(6) == 2
    assert loader.global_batch == 6
    assert len(loader) == 3


def test_batch_contains_labels_captions_and_crops(source: Source) -> None:
    batch = next(iter(EvaluationLoader(source, ImageTransform(size=16), batch_size=12)))
    assert batch.pixel_values.shape == (12, 3, 16, 16)
    assert batch.pixel_values.dtype == torch.float32
    assert batch.keys == [source.key(i) for i in range(12)]
    assert batch.keys[0] == "cats/001.png"
    assert batch.labels.tolist() == [0] * 6 + [1] * 6
    assert batch.captions == [None] * 12
    assert batch.original_sizes[0].tolist() == [61, 42]  # image 1 is 42 wide and 61 high
    assert batch.crops_ltrb[0].tolist() == [0, 8, 42, 50]  # resized to 16x23, rows 3 to 19 of it
    moved = batch.to("meta")
    assert (moved.pixel_values.device.type, moved.labels.device.type, moved.seeds.device.type) == (
        "meta",
        "meta",
        "cpu",
    )
    assert batch.pixel_values.device.type == "cpu"


def test_bad_image_replacement_does_not_depend_on_the_rank(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(image_folder / "cats", "bad1.png", "bad2.png")
    source = open_source(image_folder)
    bad = {i for i in range(14) if "bad" in source.key(i)}
    with caplog.at_level(logging.WARNING, "ldm_ae"):
        alone = stream(source, batch_size=4, steps=7, max_bad_fraction=0.2)
    assert not bad & {index for index, *_ in alone}
    assert len(alone) == 28
    lines = [record.getMessage() for record in caplog.records]
    assert_equal_streams(alone, stream(source, batch_size=2, steps=7, world_size=2, workers=1, max_bad_fraction=0.2))
    assert sorted(line.partition(": ")[0] for line in lines) == ["skipped cats/bad1.png", "skipped cats/bad2.png"]
    assert all("not an image of a known format" in line for line in lines), "each once, with its reason"


def test_replacement_image_uses_the_random_seed_of_its_position(image_folder: Path) -> None:
    """Otherwise the replacement would be an exact copy of the same image's own turn in that epoch."""
    spoil(image_folder / "cats", "bad.png")
    samples = stream(open_source(image_folder), batch_size=13, steps=1, max_bad_fraction=1)
    assert len({seed for _, seed, _ in samples}) == 13


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stops_above_the_maximum_bad_fraction(image_folder: Path, workers: int) -> None:
    spoil(image_folder / "cats", "bad1.png", "bad2.png")
    source = open_source(image_folder)
    within = TrainingLoader(source, RANDOM, batch_size=14, seed=0, max_bad_fraction=2 / 14, workers=workers)
    assert len(next(within.steps())[0]) == 14
    assert set(within.rejected) == {"cats/bad1.png", "cats/bad2.png"}
    past = TrainingLoader(source, RANDOM, batch_size=14, seed=0, max_bad_fraction=0.14, workers=workers)
    with pytest.raises(
        UserError, match=r"2 of 14 images \(14.3%\).*14.0% \(max_bad_fraction\)\nthe first: cats/bad"
    ) as caught:
        list(past.steps())
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_dataset_of_only_bad_images_stops(tmp_path: Path, workers: int) -> None:
    spoil(tmp_path, *(f"{i}.png" for i in range(40)))
    with pytest.raises(UserError, match="cannot be used") as caught:
        next(
            TrainingLoader(
                open_source(tmp_path), RANDOM, batch_size=2, seed=0, max_bad_fraction=1, workers=workers
            ).steps()
        )
    assert "Traceback" not in str(caught.value)


def test_deleted_file_counts_as_a_bad_image(image_folder: Path, source: Source) -> None:
    (image_folder / "cats/001.png").unlink()
    loader = EvaluationLoader(source, RANDOM, batch_size=4, max_bad_fraction=0.1)
    assert sum(len(batch) for batch in loader) == 11
    assert loader.rejected == {"cats/001.png": "cannot be read: No such file or directory"}


class Complaining(FolderSource):
    """Raises the given error."""

    error: Exception = UserError("the data set is closed")

    def __getitem__(self, index: int) -> RawImage:
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
def test_user_error_in_a_worker_is_raised_unchanged(image_folder: Path, workers: int) -> None:
    source = Complaining(image_folder, ["cats/001.png"])
    with pytest.raises(UserError, match=r"^the data set is closed$"):
        next(TrainingLoader(source, RANDOM, batch_size=1, seed=0, workers=workers).steps())
    with pytest.raises(UserError, match=r"^the data set is closed$"):
        list(EvaluationLoader(source, RANDOM, batch_size=1, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_unexpected_error_stops_and_names_the_image(
    image_folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = Complaining(image_folder, ["cats/001.png"])
    source.error = KeyError("a defect")
    before = set(multiprocessing.active_children())
    message = r"^cats/001.png: unexpected KeyError while reading this image: 'a defect'$"
    with pytest.raises(RunError, match=message):
        next(TrainingLoader(source, RANDOM, batch_size=1, seed=0, workers=workers).steps())
    with pytest.raises(RunError, match=message):
        next(iter(RangeLoader(source, RANDOM_FREE, ranges=[range(1)], batch_size=1, workers=workers)))
    assert set(multiprocessing.active_children()) <= before
    assert "raise self.error" in caplog.text


class Labelled(FolderSource):
    """Gives a label that int64 does not hold."""

    def __getitem__(self, index: int) -> RawImage:
        return super().__getitem__(index)._replace(label=2**63 if index == 1 else 2**63 - 1)


def test_label_beyond_int64_counts_as_a_bad_image(image_folder: Path) -> None:
    source = Labelled(image_folder, ["cats/001.png", "cats/003.png"])
    loader = EvaluationLoader(source, RANDOM, batch_size=2, max_bad_fraction=1)
    assert [batch.labels.tolist() for batch in loader] == [[2**63 - 1]]
    assert loader.rejected == {
        "cats/003.png": "its label 9223372036854775808 is not a class number from 0 to 2^63 - 1"
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_visits_each_image_once_in_order(source: Source, world_size: int, workers: int) -> None:
    visited, sizes = [], []
    for rank in range(world_size):
        loader = EvaluationLoader(source, RANDOM, batch_size=5, rank=rank, world_size=world_size, workers=workers)
        batches = list(loader)
        sizes.append([len(batch) for batch in batches])
        assert len(loader) == sum(sizes[-1])
        visited += [index for batch in batches for index in batch.indices.tolist()]
    assert visited == list(range(12))
    assert sizes == {1: [[5, 5, 2]], 2: [[5, 1], [5, 1]], 5: [[2], [2], [3], [2], [3]]}[world_size]


def test_evaluation_loader_is_repeatable(source: Source) -> None:
    loader = EvaluationLoader(source, RANDOM, batch_size=5, workers=1)
    first, second = ([batch.pixel_values for batch in loader] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_evaluation_seeds_do_not_depend_on_ranks(source: Source) -> None:
    def seeds(world_size: int) -> list[int]:
        loaders = [
            EvaluationLoader(source, RANDOM, batch_size=5, rank=r, world_size=world_size, seed=9)
            for r in range(world_size)
        ]
        return [seed for loader in loaders for batch in loader for seed in batch.seeds.tolist()]

    assert seeds(1) == seeds(3)
    assert len(set(seeds(1))) == 12
    other = next(iter(EvaluationLoader(source, RANDOM, batch_size=12, seed=8)))
    assert not set(seeds(1)) & set(other.seeds.tolist())


def test_evaluation_yields_all_good_images_before_failing(image_folder: Path) -> None:
    spoil(image_folder / "cats", "0bad.png", "bad.png")
    source = open_source(image_folder)
    loader = EvaluationLoader(source, RANDOM, batch_size=1, max_bad_fraction=0.1, workers=1)
    seen = []
    with pytest.raises(UserError, match=r"2 of 14 images"):
        for batch in loader:
            assert len(batch) == 1, "no empty batch for a bad image"
            seen += batch.keys
    assert len(seen) == 12
    assert set(loader.rejected) == {"cats/0bad.png", "cats/bad.png"}
    tolerant = EvaluationLoader(source, RANDOM, batch_size=4, max_bad_fraction=0.2)
    assert sum(len(batch) for batch in tolerant) == 12


def test_image_smaller_than_the_crop_counts_as_bad(image_folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(image_folder / "cats/small.png")
    loader = EvaluationLoader(
        open_source(image_folder), ImageTransform(size=16, resize="none"), batch_size=4, max_bad_fraction=0.1
    )
    list(loader)
    assert loader.rejected == {"cats/small.png": "8x8 is smaller than the crop 16x16"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"indices": []}, "there are no images to load"),
    ],
)
def test_invalid_options_are_refused_by_name(source: Source, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingLoader(source, RANDOM, **{"batch_size": 2, "seed": 0, **options})


def test_noise_rows_depend_only_on_their_seed() -> None:
    seeds = torch.tensor([5, 2**62 + 1, 5, 9])
    noise = seeded_noise(seeds, (4, 32, 32))
    assert (noise.shape, noise.dtype) == ((4, 4, 32, 32), torch.float32)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1:2], seeded_noise(seeds[1:2], (4, 32, 32)))
    assert not torch.equal(noise[0], noise[1])
    # 8192 independent values: mean and variance within 5 standard errors.
    values = noise[[0, 1]]
    assert values.mean().abs() < 5 / 8192**0.5
    assert (values.var() - 1).abs() < 5 * (2 / 8192) ** 0.5
    assert (noise[0] * noise[1]).mean().abs() < 5 / 4096**0.5


def test_noise_does_not_use_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    seeded_noise(torch.tensor([1, 2]), (3,))
    assert torch.equal(before, torch.random.get_rng_state())


def test_holdout_split_is_disjoint_complete_and_determined_by_keys(image_folder: Path, source: Source) -> None:
    training, held_out = split_holdout(source, 4, seed=0)
    assert (len(held_out), sorted(training + held_out)) == (4, list(range(12)))
    assert split_holdout(source, 4, seed=0) == (training, held_out)
    assert split_holdout(source, 4, seed=1)[1] != held_out
    before = {source.key(i) for i in held_out}
    Image.new("RGB", (40, 40)).save(image_folder / "cats/000_first.png")  # moves every position by one
    larger = open_source(image_folder)
    after = {larger.key(i) for i in split_holdout(larger, 4, seed=0)[1]}
    assert len(after & before) >= 3, "one new image can take the place of one"


def test_subset_has_the_images_of_its_indices(image_folder: Path) -> None:
    source = open_source(image_folder)
    some = Subset(source, [7, 2])
    assert len(some) == some.account().images == 2
    assert [some.key(i) for i in range(2)] == [source.key(7), source.key(2)]
    assert some[1] == source[2]
    assert some.bytes_of(0) == source.bytes_of(7) == len(source[7].data)
    with some.open_image(0) as file:
        assert file.read() == source[7].data


def test_holdout_of_all_images_is_refused(source: Source) -> None:
    with pytest.raises(UserError, match="cannot hold out 12 of 12 images"):
        split_holdout(source, 12, seed=0)


def test_cache_decodes_once_and_preserves_batches(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(cache_bytes: int) -> tuple[torch.Tensor, int]:
        calls = []
        plain = Decoding.__call__
        monkeypatch.setattr(Decoding, "__call__", lambda *a: calls.append(1) or plain(*a))
        loader = TrainingLoader(
            source, ImageTransform(size=16, crop="random", flip=True), batch_size=4, seed=3, cache_bytes=cache_bytes
        )
        steps = islice(loader.steps(), 2 * len(source) // 4)
        pixels = torch.cat([batch.pixel_values for step in steps for batch in step])
        monkeypatch.undo()
        return pixels, len(calls)

    plain, decoded = stream(0)
    cached, decoded_once = stream(10**8)
    assert torch.equal(plain, cached)
    assert decoded >= 2 * len(source)
    assert decoded_once == len(source)
    assert decoded_once < stream(16_000)[1] < decoded  # room for two of them
