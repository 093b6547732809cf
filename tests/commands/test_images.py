"""How commands read images: colour profiles, crops, and the limit on pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_ae.cli import main
from ldm_ae.latents import LatentDataset, LatentStore
from ldm_ae.latents.store.verify import verify_store
from scripts.reliability.odd_colours import cmyk_icc, meant, rgb_icc
from tests.images.test_transforms import center_crop_arr

SMALL = ["--workers", "0", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five of 96 x 64: two of Display P3, one of sRGB, one of no profile, one with a profile that does not fit."""
    folder = tmp_path / "photos"
    folder.mkdir()
    profiles = [rgb_icc("Display P3"), rgb_icc("Display P3"), rgb_icc("sRGB"), b"", cmyk_icc()]
    for number, profile in enumerate(profiles):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", icc_profile=profile)
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def encode(model: Path, images: Path, store: Path, *options: object) -> int:
    return run("encode", model, images, store, *SMALL, "--size", 32, "--latents", "mode", *options)


def latents(store: Path) -> np.ndarray:
    data = LatentDataset(store)
    return np.stack([data.read(i).numpy() for i in range(len(data))])


def image(path: Path) -> Image.Image:
    """In memory, the file closed."""
    with Image.open(path) as opened:
        return opened.convert("RGB")


def rewritten(images: Path, out: Path, convert: bool) -> Path:
    """The same pixels without profiles, those of Display P3 converted."""
    out.mkdir()
    for path in images.iterdir():
        pixels = np.asarray(image(path))
        Image.fromarray(meant(pixels, "Display P3") if convert and path.stem in "01" else pixels).save(out / path.name)
    return out


def test_colours_are_converted_and_recorded_in_the_store(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(tiny_model_folder, photos, tmp_path / "store") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        "2 images converted to sRGB, from Display P3 (2)",
        "1 images have a colour profile that was not applied: a profile for CMYK samples, the image has RGB (1)",
    ]
    store = LatentStore(tmp_path / "store")
    assert store.request.transform["colour_profiles"] == "convert"
    not_applied = "not applied: a profile for CMYK samples, the image has RGB"
    assert store.index["colour_profile"].to_pylist() == ["Display P3", "Display P3", None, None, not_applied]
    assert run("inspect", tmp_path / "store", "--json") == 0
    assert json.loads(capsys.readouterr().out)["colour_profiles"] == {"Display P3": 2, not_applied: 1}
    assert encode(tiny_model_folder, rewritten(photos, tmp_path / "srgb", True), tmp_path / "same") == 0
    np.testing.assert_allclose(
        latents(tmp_path / "store"), latents(tmp_path / "same"), atol=0.05
    )  # a level here and there


@pytest.mark.slow
def test_ignored_profiles_are_recorded_and_kept_on_resume(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version without colour profiles wrote the description: the same command without the option resumes."""
    store = tmp_path / "store"
    assert encode(tiny_model_folder, photos, store, "--colour-profiles", "ignore") == 0
    assert "converted" not in capsys.readouterr().out
    assert LatentStore(store).index["colour_profile"].to_pylist() == [None] * 5
    assert "colour_profiles" not in LatentStore(store).request.transform
    assert encode(tiny_model_folder, rewritten(photos, tmp_path / "bare", False), tmp_path / "same") == 0
    assert np.array_equal(latents(store), latents(tmp_path / "same"))
    capsys.readouterr()
    assert encode(tiny_model_folder, photos, store) == 0
    captured = capsys.readouterr()
    assert "is already complete" in captured.out
    assert captured.err == (
        f"note: colour profiles are ignored, as in {store} so far; to convert them, encode into a new store\n"
    )
    assert encode(tiny_model_folder, photos, store, "--colour-profiles", "convert") == 2
    assert f"{store} is a store made with transform.colour_profiles (not set) (now " in capsys.readouterr().err


def test_stores_of_older_versions_are_opened(tiny_model_folder: Path, photos: Path, tmp_path: Path) -> None:
    """A version without colour profiles and orientations wrote such stores."""
    import pyarrow.parquet as pq

    from ldm_ae.io.files import read_json, write_json
    from ldm_ae.latents.store.files import look_at
    from ldm_ae.models import hash_json

    path = tmp_path / "store"
    assert encode(tiny_model_folder, photos, path, "--colour-profiles", "ignore") == 0
    pq.write_table(
        pq.read_table(path / "index.parquet").drop(["orientation", "colour_profile"]), path / "index.parquet"
    )
    description = read_json(path / "store.json")
    del description["checksum"]
    description["files"]["index.parquet"] = look_at(path / "index.parquet")._asdict()
    write_json(path / "store.json", description | {"checksum": hash_json(description)})
    assert verify_store(path) == []
    assert LatentStore(path).index["orientation"].to_pylist() == [None] * 5
    assert run("convert", path, tmp_path / "out", "--format", "kohya", "--arch", "sd") == 0
    assert (tmp_path / "out" / "0_0096x0064_sd.npz").is_file()


@pytest.mark.slow
def test_adm_crop_is_supported_by_every_command_that_reads_images(
    tiny_model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "cropped").mkdir()
    for path in photos.iterdir():
        Image.fromarray(center_crop_arr(image(path), 32)).save(tmp_path / "cropped" / path.name)
    options = ("--crop", "adm", "--colour-profiles", "ignore")
    assert encode(tiny_model_folder, photos, tmp_path / "store", *options) == 0
    assert LatentStore(tmp_path / "store").request.transform["crop"] == "adm"
    assert encode(tiny_model_folder, tmp_path / "cropped", tmp_path / "same") == 0
    assert np.array_equal(latents(tmp_path / "store"), latents(tmp_path / "same"))
    assert encode(tiny_model_folder, photos, tmp_path / "center", "--colour-profiles", "ignore") == 0
    assert not np.array_equal(latents(tmp_path / "store"), latents(tmp_path / "center"))
    scores = {}
    for name, images, more in (("adm", photos, options), ("same", tmp_path / "cropped", ())):
        quick = ("--perceptual", "none", "--features", "none", "--out", tmp_path / f"scores-{name}")
        assert run("evaluate", tiny_model_folder, images, *SMALL, "--size", 32, *quick, *more) == 0
        scores[name] = json.loads((tmp_path / f"scores-{name}" / "metrics.json").read_text())
    assert scores["adm"]["scores"] == scores["same"]["scores"]
    assert '"crop": "adm"' in json.dumps(scores["adm"]["protocol"])


def test_repa_format_has_the_pixels_of_the_adm_crop(tiny_model_folder: Path, photos: Path, tmp_path: Path) -> None:
    options = ("--crop", "adm", "--colour-profiles", "ignore")
    (photos / "a").mkdir()
    for path in [*photos.glob("*.png")]:
        path.rename(photos / "a" / path.name)
    assert encode(tiny_model_folder, photos, tmp_path / "store", *options) == 0
    assert run("convert", tmp_path / "store", tmp_path / "out", "--format", "repa", "--images", photos) == 0
    found = {image(path).tobytes() for path in (tmp_path / "out").rglob("*.png")}
    assert found == {center_crop_arr(image(path), 32).tobytes() for path in photos.rglob("*.png")}


def test_reconstruct_prints_the_cropped_fraction(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reconstruct", tiny_model_folder, photos, tmp_path / "square", *SMALL, "--size", 32) == 0
    assert capsys.readouterr().out.splitlines()[-2] == (
        "at 32x32 pixels: 33.3% of each image cropped off on average; --whole keeps whole images"
    )
    sizes = ("--sizes", "32x32,32x48")
    assert run("reconstruct", tiny_model_folder, photos, tmp_path / "sizes", *SMALL, *sizes) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("at 32x32, 32x48 pixels: 0.0% of each image cropped off")
    assert image(tmp_path / "sizes" / "0.png").size == (48, 32)


@pytest.mark.parametrize(
    ("options", "size"),
    [(("--size", 32), (48, 32)), (("--resize", "none"), (96, 64)), (("--size", 40), (60, 40)), ((), (96, 64))],
)
def test_reconstruct_whole_keeps_the_complete_image(
    options: tuple[object, ...], size: tuple[int, int], tiny_model_folder: Path, photos: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    portrait = Image.fromarray(np.random.default_rng(9).integers(0, 256, (97, 64, 3), dtype=np.uint8))
    portrait.save(photos / "portrait.png")
    if not options:
        config = json.loads((tiny_model_folder / "config.json").read_text())
        (tiny_model_folder / "config.json").write_text(json.dumps(config | {"sample_size": 64}))
    assert run("reconstruct", tiny_model_folder, photos, tmp_path / "out", *SMALL, "--whole", *options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"6 reconstructions: {tmp_path / 'out'}"
    assert {image(tmp_path / "out" / f"{number}.png").size for number in range(5)} == {size}
    assert image(tmp_path / "out" / "portrait.png").size == size[::-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--whole", "--area", "64x64"), "--whole and --area exclude each other; remove one of them"),
        (("--whole", "--crop", "adm"), "--whole and --crop exclude each other"),
        (("--whole", "--resize", "40"), "--whole and --resize exclude each other"),
        (("--whole", "--resize", "none", "--size", "32"), "--whole and --size exclude each other"),
        (("--whole", "--size", "33"), "is not divisible by the model's downsample factor 4"),
        (("--sizes", "32x32,32x48", "--crop", "adm"), "--crop and --sizes exclude each other"),
        (("--size", "32", "--crop", "adm", "--resize", "40"), "does not take resize 40"),
        (("--size", "32", "--max-pixels", "0"), "max_pixels is 0; it must be at least 1"),
    ],
)
def test_invalid_image_options_are_refused(
    options: tuple[str, ...], message: str, tiny_model_folder: Path, photos: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run("reconstruct", tiny_model_folder, photos, tmp_path / "out", *SMALL, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_max_pixels_skips_or_accepts_larger_images(
    tiny_model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = np.random.default_rng(9).integers(0, 256, (64, 200, 3), dtype=np.uint8)
    Image.fromarray(wide).save(photos / "wide.png")
    options = ("--max-pixels", 96 * 64, "--max-bad-fraction", 0.5)
    assert encode(tiny_model_folder, photos, tmp_path / "small", *options) == 0
    assert LatentStore(tmp_path / "small").bad() == {
        "wide.png": "200x64 is 12,800 pixels, more than 6,144; max_pixels sets the limit"
    }
    assert encode(tiny_model_folder, photos, tmp_path / "large", "--max-pixels", 12_800) == 0
    assert LatentStore(tmp_path / "large").bad() == {}
