"""The benchmark of images other than RGB in 8 bits at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.processes import fork_commands

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import other_images

    return other_images


@pytest.mark.slow
def test_recipes_are_trained_and_scored(
    benchmark: Any,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "START", str(tiny_model_folder))
    fork_commands(monkeypatch, benchmark, tmp_path / "log")
    options = ["--steps", "2", "--images", "16", "--training.batch_size", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["other_images.py", *options])
    benchmark.main()
    lines = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    rows = {(cells[1], cells[2]): cells[3:] for cells in lines if len(cells) == 7}
    for name, score, height in (
        ("grey16_f8", "psnr", 3),
        ("rgba_f8", "psnr_alpha", 3),
        ("multispectral_f8", "psnr near infrared", 6),
    ):
        scores = json.loads((tmp_path / name / "scores.json").read_text())
        assert rows[name, score][:2] == [f"{scores[key][score]:.4g}" for key in ("before", "after")]
        assert scores["before"][score] != scores["after"][score]
        with Image.open(tmp_path / name / f"{name}.jpg") as picture:
            assert picture.size == (2 * 64, height * 64)


def test_generated_images_are_those_of_the_recipes(benchmark: Any) -> None:
    for pixels, make in benchmark.GENERATED.values():
        images = [make(np.random.default_rng(seed)) for seed in range(8)]
        assert {image.shape for image in images} == {(pixels.channels, 64, 64)}
        assert {image.dtype for image in images} == {pixels.dtype}
        assert np.array_equal(images[0], make(np.random.default_rng(0)))
        assert not np.array_equal(images[0], images[1])
    missing = [float((image == 0).mean()) for image in images]  # of scenes
    assert 0 < max(missing) < 0.2
    assert min(missing) == 0


def test_variants_of_an_emoji_are_on_one_side(benchmark: Any, tmp_path: Path) -> None:
    for tone in ("", "-1f3fb", "-1f3fc", "-1f3fd", "-1f3fe", "-1f3ff"):
        for code in ("1f44b", "1f590-fe0f", "1f468-200d-2695-fe0f", "1f469-200d-2695-fe0f", *map(str, range(9))):
            (tmp_path / f"{code}{tone}.png").write_bytes(b"")
    benchmark.copy_files(tmp_path / "out", tmp_path, 40)
    train, heldout = (
        {benchmark.VARIANT.sub("", path.stem) for path in (tmp_path / "out" / part).iterdir()}
        for part in ("train", "heldout")
    )
    assert train
    assert heldout
    assert not train & heldout
