"""Row 7 in short, and that the trial can fail."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.processes import run_script


@pytest.fixture
def fork(tmp_path: Path) -> Callable[..., Any]:
    """`odd_images.process` as a fork, whose peak is not that of the process which started it."""
    import odd_images

    def run(*words: object) -> Any:
        log, peak = tmp_path / "log", tmp_path / "peak"
        log.unlink(missing_ok=True)
        script = Path(__file__).with_name("write_peak.py")
        status = run_script(script, [str(peak), *map(str, words)], log)
        return odd_images.Run(status, log.read_text(), int(peak.read_text()))

    return run


@pytest.mark.slow
def test_unusual_images_are_decoded_correctly_or_listed(
    fork: Callable[..., Any], samples: Any, trial: Any, tmp_path: Path
) -> None:
    import odd_images

    found = odd_images.write_images(tmp_path / "images", real_bombs=False)
    assert len(found.valid) >= 25
    assert len(found.broken) >= 15
    odd_images.check_encode(trial, fork, samples, found, tmp_path)
    assert trial.failures == []
    assert trial.passed > len(found.valid) + len(found.broken)


@pytest.mark.slow
def test_training_lists_skipped_images(fork: Callable[..., Any], trial: Any, tmp_path: Path) -> None:
    import odd_images

    found = odd_images.write_images(tmp_path / "images", real_bombs=False)
    odd_images.check_train(trial, fork, found, tmp_path)
    assert trial.failures == []


@pytest.mark.slow
def test_wrong_pixels_and_reasons_count_as_failures(
    fork: Callable[..., Any], samples: Any, trial: Any, tmp_path: Path
) -> None:
    import odd_images

    found = odd_images.write_images(tmp_path / "images", real_bombs=False)
    turned = next(key for key, name in found.valid.items() if name == "EXIF orientation 6")
    Image.open(found.mixed / odd_images.twin_of(turned)).rotate(90).save(found.mixed / odd_images.twin_of(turned))
    text = next(key for key, name in found.broken.items() if name == "text")
    (found.mixed / text).write_bytes(b"")
    run = odd_images.encode(fork, samples, found.mixed, tmp_path / "store", "--max-bad-fraction", 1)
    odd_images.check_store(trial, found, run, tmp_path / "store")
    assert len(trial.failures) == 2
    assert trial.failures[0] == "encode: text: empty file"
    assert trial.failures[1].startswith("encode: EXIF orientation 6: its latents differ by")


def test_decompression_bombs_are_valid_images() -> None:
    from odd_images import bomb

    image = Image.open(io.BytesIO(bomb(300)))
    image.load()
    assert image.size == (300, 300)
    assert image.getextrema() == ((0, 0),) * 3
