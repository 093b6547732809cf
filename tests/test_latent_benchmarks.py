"""The benchmarks of encoding data sets and reading latents at toy size: all ways store and read the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm_ae.latents import LatentDataset, verify_store

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def work(tmp_path: Path, **changes: Any) -> Any:
    from encode_data_set import Setting, Work, make_images

    images = make_images(tmp_path / "images", 5, different=4, size=(50, 40))
    setting = Setting((32, 64), 32, 2, CPU, layers_per_block=1)
    return Work(setting, images, tmp_path / "out", workers=0, **changes)


def test_reference_scripts_and_encode_store_the_same_latents(tmp_path: Path) -> None:
    import encode_data_set

    found = {v.name: v.build()() for v in encode_data_set.variants(work(tmp_path, latents="mode"))}
    plain = load_file(found.pop("plain script fp32") / "latents.safetensors")["latents"]
    assert plain.shape == (5, 4, 16, 16)
    assert float(plain.std()) > 0.01
    files = sorted(found.pop("a .npy for each image, fp32").glob("*.npy"))
    assert [file.stem for file in files] == [f"{number:06d}" for number in range(5)]
    assert torch.equal(torch.from_numpy(np.stack([np.load(file) for file in files])), plain)
    for name, store in found.items():
        assert verify_store(store) == []
        data = LatentDataset(store)
        assert data.tensor_names == {"latents", "labels", "index", "original_size", "crop_ltrb"}
        ours = torch.stack([data.read(position) for position in range(5)])
        # float32: another layout reorders sums; bfloat16 keeps 8 bits, over a dozen layers.
        assert (ours - plain).norm() < (1e-4 if "fp32" in name else 0.03) * plain.norm(), name
    assert "ours fp32" in found


def test_result_is_removed_before_the_next_call(tmp_path: Path) -> None:
    import encode_data_set

    call = encode_data_set.variants(work(tmp_path))[0].build()
    for _ in range(2):
        call()
        call.settle()  # type: ignore[attr-defined]
        assert not call.folder.exists()  # type: ignore[attr-defined]


def test_generated_images_are_distinct_within_a_period(tmp_path: Path) -> None:
    images = sorted(work(tmp_path).images.glob("*.jpg"))
    assert len({image.read_bytes() for image in images}) == 4
    assert images[4].samefile(images[0])
    with Image.open(images[0]) as image:
        assert image.size == (50, 40)


@pytest.mark.slow
def test_memory_and_bytes_on_disk_are_measured(tmp_path: Path) -> None:
    import encode_data_set

    few, many = encode_data_set.memory_variants(tmp_path, CPU, 3, 6)
    assert (few.name, many.images) == ("3 images", 6)
    assert len(LatentDataset(many.build()())) == 6
    table = encode_data_set.bytes_per_image(tmp_path / "bytes", CPU, count=8, size=32)
    cells = [line.strip("| ").split(" | ") for line in table[2:]]
    sizes = {tuple(words): int(number.replace(",", "")) for *words, number in cells}
    assert len(sizes) == 12
    # What a store holds of each image, 4 channels of 4x4: a float32 sample has 256 bytes, moments have 512.
    assert sizes["full", "fp32", "yes"] - sizes["lean", "fp32", "yes"] == pytest.approx(2 * 256, abs=64)
    assert sizes["full", "fp32", "yes"] - sizes["full", "bf16", "yes"] == pytest.approx(2 * 384, abs=64)
    assert sizes["full", "fp32", "yes"] - sizes["full", "fp32", "no"] == pytest.approx(768, abs=64)


@pytest.mark.slow
def test_both_readers_return_the_same_latents(tmp_path: Path) -> None:
    import read_latents

    read_latents.make_files(tmp_path / "npz", read_latents.make_store(tmp_path / "store", 130))
    assert verify_store(tmp_path / "store") == []
    found = {v.name: v.build()() for v in read_latents.variants(tmp_path, 130)}
    assert len(found) == 4
    first, *others = found.values()
    assert float(first) != 0
    for other in others:  # the same float64 sum in another order
        assert float(other) == pytest.approx(float(first), rel=1e-12)
    files, data = read_latents.Files(tmp_path / "npz"), LatentDataset(tmp_path / "store")
    assert torch.equal(files[77]["latents"], data[77]["latents"])  # type: ignore[arg-type]
    assert files[77]["label"] == data[77]["label"] == 77
