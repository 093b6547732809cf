"""Refused commands, which leave no new folders or files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm_ae.cli import main
from ldm_ae.io.files import leaving_nothing, new_folder

pytestmark = pytest.mark.slow  # commands and trainings, half a second and longer together with their set-up


@pytest.fixture
def broken_images(tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(b"not an image")
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("evaluate {model} nowhere --out {out}", "nowhere"),
        ("evaluate {model} {images} --out {out} --limit 0 --device cpu", "--limit is 0"),
        ("evaluate {model} {broken} --out {out} --size 32 --features none --device cpu", "cannot be used"),
        ("encode {model} nowhere {out}", "nowhere"),
        ("encode {model} {images} {out} --size 30 --device cpu", "30"),
        ("encode {model} {broken} {out} --size 32 --workers 0 --device cpu", "none of the 2 images can be used"),
        ("reconstruct {model} nowhere {out}", "nowhere"),
        ("reconstruct {model} {broken} {out} --size 32 --workers 0 --device cpu", "cannot be used"),
        ("decode {model} nowhere {out}", "nowhere"),
        ("export {model} {out} --format ldm --sample-size 8", "--format ldm cannot store"),
        ("export nowhere {out}", "nowhere"),
        ("import nowhere.ckpt {out}", "nowhere.ckpt"),
        ("convert nowhere {out} --format lightningdit", "nowhere"),
        ("outliers {model} {images} --out {out} --top 0", "--top is 0"),
        ("outliers {model} {images} --out {out} --size 32 --scores elbo --device cpu", "elbo cannot be computed"),
        ("convert nowhere {out} --format store --model {model}", "nowhere"),
    ],
)
def test_refused_commands_leave_no_folder(
    arguments: str,
    words: str,
    tiny_model_folder: Path,
    image_folder: Path,
    broken_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"model": tiny_model_folder, "images": image_folder, "broken": broken_images}
    out = tmp_path / "runs" / "new"
    assert main([part.format(out=out, **places) for part in arguments.split()]) == 2
    assert words in capsys.readouterr().err
    assert not out.parent.exists()


def test_refused_encode_keeps_an_existing_folder(tiny_model_folder: Path, broken_images: Path, tmp_path: Path) -> None:
    """It removes only its own files."""
    store = tmp_path / "store"
    (store / ".work").mkdir(parents=True)
    (store / ".work" / "mine").write_text("kept")
    options = ("--size", "32", "--workers", "0", "--device", "cpu")
    assert main(["encode", str(tiny_model_folder), str(broken_images), str(store), *options]) == 2
    assert (store / ".work" / "mine").read_text() == "kept"


def test_refusal_keeps_an_existing_store(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every field that differs is named with both values, and the store stays as it was."""
    store = tmp_path / "store"
    arguments = ["encode", str(tiny_model_folder), str(image_folder), str(store), "--workers", "0", "--device", "cpu"]
    assert main([*arguments, "--size", "32"]) == 0
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*arguments, "--size", "16", "--fp16", "--seed", "3"]) == 2
    stored = json.loads((store / "store.json").read_text())["request"]["transform"]
    error = capsys.readouterr().err
    assert f"{store} is a store made with transform.size {json.dumps(stored['size'])} (now " in error
    assert 'dtype "fp32" (now "fp16")' in error
    assert "seed 0 (now 3)" in error
    assert "transform_hash" not in error
    assert "use the store's settings, or give another folder" in error
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_new_folders_are_removed_up_to_an_existing_parent(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b") as folder:
        assert folder.is_dir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="late"), new_folder(tmp_path / "a" / "b") as folder:
        Image.new("RGB", (1, 1)).save(folder / "result.png")
        raise ValueError("late")
    assert (tmp_path / "a" / "b" / "result.png").is_file()
    with pytest.raises(ValueError, match="late"), leaving_nothing(tmp_path / "c") as begun:
        (tmp_path / "c").mkdir()
        begun()
        raise ValueError("late")
    assert (tmp_path / "c").is_dir()
