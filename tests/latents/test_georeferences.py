"""GeoTIFF files that are reconstructed, or encoded and decoded, by the commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm_ae.cli import main
from ldm_ae.models import KLAutoencoder

tifffile = pytest.importorskip("tifffile")
SCALE, POINTS = 33550, 33922


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("geo")
    (root / "images").mkdir()
    for number in range(2):
        tags = [(SCALE, "d", 3, (10.0, 10.0, 0.0), True), (POINTS, "d", 6, (0.0, 0.0, 0.0, 100.0, 900.0, 0.0), True)]
        tifffile.imwrite(root / f"images/{number}.tif", np.full((5, 20, 26), 9 + number, np.uint16), extratags=tags,
                         photometric="minisblack", planarconfig="separate")  # fmt: skip
    tifffile.imwrite(root / "images/plain.tif", np.ones((5, 20, 26), np.uint16), photometric="minisblack",
                     planarconfig="separate")  # fmt: skip
    KLAutoencoder(
        pixels={"channels": 5, "bits": 16}, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    ).save_pretrained(root / "model")  # fmt: skip
    return root


def tags(path: Path) -> tuple[tuple[float, ...], ...]:
    with tifffile.TiffFile(path) as file:
        found = {tag.code: tag.value for tag in file.pages.first.tags}
    return found.get(SCALE, ()), found.get(POINTS, ())


def test_reconstruction_keeps_the_georeference(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reconstruct", str(place / "model"), str(place / "images"), "--workers", "0", "--files", "tif"]
    assert main([*command[:3], str(place / "whole"), *command[3:], "--whole", "--resize", "none"]) == 0
    assert tags(place / "whole/0.tif") == ((10.0, 10.0, 0.0), (0.0, 0.0, 0.0, 100.0, 900.0, 0.0))
    assert tags(place / "whole/plain.tif") == ((), ())
    assert "georeferences kept: 2" in capsys.readouterr().out
    damaged = (place / "images/0.tif").read_bytes()[:300]
    (place / "damaged.tif").write_bytes(damaged)
    assert main(["reconstruct", command[1], str(place / "damaged.tif"), str(place / "none"), "--size", "10"]) == 2
    assert all("damaged.tif: damaged: " in line or "cannot be used" in line for line in
               capsys.readouterr().err.splitlines())  # fmt: skip
    assert main([*command[:3], str(place / "half"), *command[3:], "--size", "10"]) == 0
    assert tags(place / "half/0.tif") == ((20.0, 20.0, 0.0), (-1.0, 0.0, 0.0, 100.0, 900.0, 0.0))  # 13 pixels wide


def test_decoded_store_takes_the_georeference_of_its_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = str(place / "model"), str(place / "images")
    assert main(["encode", model, images, str(place / "store"), "--size", "10", "--workers", "0"]) == 0
    decode = ["decode", model, str(place / "store")]
    assert main([*decode, str(place / "decoded"), "--files", "tif", "--images", images]) == 0
    assert tags(place / "decoded/1.tif") == ((20.0, 20.0, 0.0), (-1.0, 0.0, 0.0, 100.0, 900.0, 0.0))
    assert "georeferences kept: 2" in capsys.readouterr().out
    tifffile.imwrite(place / "images/0.tif", np.ones((5, 30, 26), np.uint16), photometric="minisblack",
                     planarconfig="separate", extratags=[(POINTS, "d", 6, (0.0,) * 6, True)])  # fmt: skip
    assert main([*decode, str(place / "other"), "--files", "tif", "--images", images]) == 0
    assert "georeferences dropped: 1, the file has another size than the encoded one" in capsys.readouterr().out
    assert main([*decode, str(place / "none"), "--images", images]) == 2
    assert "npy files cannot hold georeferences; write tif" in capsys.readouterr().err
