"""The search for outliers in folders, its files and its page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import ldm_ae
from ldm_ae.core.errors import UserError
from tests.browser import Browser
from tests.evaluation.stubs import IdentityAutoencoder
from tests.page_checks import assert_page_fits
from tests.pages import Page
from tests.pictures import smooth_picture
from tests.scripts import load_script

SCORES = ("latents", "reconstruction")


def write_pictures(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        smooth_picture(number, 16, 16).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def model() -> IdentityAutoencoder:
    """A model whose latents are the pixels, so that those of a black image have no deviations."""
    found = IdentityAutoencoder()
    found.net.config = {}
    return found


@pytest.fixture
def with_one_black(tmp_path: Path) -> Path:
    folder = write_pictures(tmp_path / "images", range(15))
    Image.new("RGB", (16, 16)).save(folder / "black <&.png")
    return folder


def test_black_image_among_pictures_is_the_strangest_and_every_image_is_in_the_table(
    model: IdentityAutoencoder, with_one_black: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    reference = write_pictures(tmp_path / "reference", range(20, 44))
    options = {"size": 16, "scores": SCORES, "top": 3, "device": "cpu", "reference": reference}
    found = ldm_ae.find_outliers(model, with_one_black, **options, out=out)
    assert found.keys[found.order[0]] == "black <&.png"
    percentiles = found.percentiles("latents")[found.order].tolist()
    assert percentiles[0] == 100.0
    assert percentiles == sorted(percentiles, reverse=True)
    rows = list(csv.DictReader((out / "outliers.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["key"] for row in rows] == [found.keys[row] for row in found.order]
    assert [float(row["latents"]) for row in rows] == sorted(found.scores["latents"].tolist(), reverse=True)
    values = json.loads((out / "outliers.json").read_text())
    assert values["ranking"] == "latents"
    assert values["strangest"] == [row["key"] for row in rows[:3]]
    assert values["protocol"]["reference_images"] == str(reference)
    text = (out / "outliers.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "1. black <&.png" in page.text
    assert len(page.all("img")) == 2 * 3
    assert "://" not in text
    assert torch.equal(found.shown[0].original, torch.zeros(3, 16, 16, dtype=torch.uint8))
    line = found.lines()[2].split()
    assert line[0] == "1"
    assert float(line[1]) == pytest.approx(max(found.scores["latents"].tolist()), rel=1e-3)
    assert line[2:4] == ["100.0", "black"]


def test_known_strange_images_have_an_auroc_with_half_of_the_images_as_reference(
    model: IdentityAutoencoder, tmp_path: Path
) -> None:
    images = write_pictures(tmp_path / "images", range(30))
    for number in range(3):
        (tmp_path / "strange").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "strange" / f"{number}.png")
    options = {"size": 16, "scores": SCORES, "against": tmp_path / "strange", "device": "cpu"}
    found = ldm_ae.find_outliers(model, images, **options)
    assert found.auroc["latents"] == 1.0
    assert len(found.reference_scores["latents"]) == 15
    assert found.protocol["reference_images"] == f"every second image of {images}"
    assert any(line.startswith("AUROC of") for line in found.lines())
    more = write_pictures(tmp_path / "more", range(20, 44))
    other = ldm_ae.find_outliers(model, images, **options, reference=more)
    assert len(other.reference_scores["latents"]) == 24
    assert other.auroc["latents"] == 1.0
    with pytest.raises(UserError, match="AUROC needs at least 2 images"):
        ldm_ae.find_outliers(model, images, **(options | {"scores": "reconstruction"}), limit=1)


def test_scores_that_a_model_does_not_have_are_skipped_unless_they_are_named(
    model: IdentityAutoencoder, with_one_black: Path
) -> None:
    found = ldm_ae.find_outliers(model, with_one_black, size=16, device="cpu", limit=6)
    assert found.ranking == "latents"
    assert found.skipped.keys() >= {"elbo", "codes", "typicality", "complexity"}
    assert found.scores.keys() >= {"latents", "reconstruction"}
    for scores, words in (("elbo", "elbo cannot be computed: the model has no"), ("elb", "did you mean elbo")):
        with pytest.raises(UserError, match=words):
            ldm_ae.find_outliers(model, with_one_black, size=16, scores=scores, device="cpu")
    with pytest.raises(UserError, match="top is 0; it must be at least 1"):
        ldm_ae.find_outliers(model, with_one_black, size=16, top=0, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(400, True), (1400, False)])
def test_page_fits_the_window(
    window: Browser, model: IdentityAutoencoder, with_one_black: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    found = ldm_ae.find_outliers(
        model, with_one_black, size=16, scores=SCORES, against=with_one_black, device="cpu", out=tmp_path / "out"
    )
    assert found.page is not None
    assert_page_fits(window, found.page, width=width, dark=dark)


@pytest.mark.slow
def test_script_prints_the_auroc_of_each_kind(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("outliers")
    arguments = f"{tiny_model_folder} {image_folder} --count 4 --size 16 --device cpu --out {tmp_path / 'out'}"
    assert script.main([*arguments.split(), "--against", f"same={image_folder}"]) == 0
    areas = json.loads((tmp_path / "out" / "outliers.json").read_text())["auroc"]
    kinds = [*script.STRANGE, "same"]
    assert list(areas["latents"]) == [*kinds, "mean"]
    assert areas["latents"]["mean"] == pytest.approx(sum(areas["latents"][kind] for kind in kinds) / len(kinds))
    assert "| `reconstruction` |" in capsys.readouterr().out
    assert script.main([*arguments.split(), "--against", "black=here"]) == 2
