"""The quickstart's page: its images, both models with their scores, and its state before training ends."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from ldm_ae.commands._quickstart_page import Contestant, photo_title, save_images, write_page
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.evaluation import evaluate
from ldm_ae.losses import ShiftTolerantLPIPS
from ldm_ae.models import KLAutoencoder
from tests.pages import Page


@pytest.fixture
def contestants(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> list[Contestant]:
    transform = ImageTransform(size=32)
    found = []
    for name, title, folder, report in (
        ("small <1>", "The <pretrained> model", "shipped", "report-1"),
        ("trained", "The trained one", "reconstructed", "report-2"),
    ):
        loader = EvaluationLoader(open_source(str(image_folder)), transform, batch_size=4, indices=range(3))
        evaluation = evaluate(
            tiny_model, loader, source="tests", transform_description=transform.describe(), model_name=name,
            perceptual=ShiftTolerantLPIPS(net="alex"), device="cpu", pictures=3,
        )  # fmt: skip
        found.append(
            Contestant(
                name=name, title=title, origin="from a test", folder=folder, report=report, numbers=256,
                evaluation=evaluation,
            )
        )  # fmt: skip
        save_images(tmp_path, found[-1])
        (tmp_path / report).mkdir()
        (tmp_path / report / "report.html").touch()
    (tmp_path / "run" / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "samples" / "step-00001500.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "sample-0.png")
    return found


def images(page: Page) -> list[str]:
    return [str(image["src"]) for image in page.all("img")]


def write(folder: Path, contestants: list[Contestant], **options: str) -> str:
    contents = [(folder / "run", "the training run")]
    write_page(folder, contestants, contents=contents, commands=[("Encode:", "ldm-ae encode A B && x")], **options)
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_page_shows_photos_models_scores_and_valid_links(contestants: list[Contestant], tmp_path: Path) -> None:
    text = write(tmp_path, contestants, lesson="It gives <b>more</b>.")
    page = Page(text)
    for link in page.all("a"):
        assert (tmp_path / str(link["href"])).exists(), link
    # A row for each photo in the order of the report; narrow windows repeat the original beside the trained model's.
    rows = [contestants[0].evaluation.images[i].key for i in range(3)]
    places = ("originals", "shipped", "originals", "reconstructed")
    expected = [f"{place}/{Path(key).with_suffix('.png').as_posix()}" for key in rows for place in places]
    assert images(page) == [*expected, "run/samples/step-00001500.png", "sample-0.png"]
    words = re.sub(r" +", " ", unescape(re.sub(r"<[^>]+>", " ", text)))
    assert "The <pretrained> model small <1>, from a test" in words
    assert "The trained one trained, from a test" in words
    for contestant in contestants:
        for row in contestant.evaluation.images:
            assert f"PSNR {row.scores['psnr']:.2f} dB" in words
            assert f"SSIM {row.scores['ssim']:.3f}" in words
            assert f"ST-LPIPS (AlexNet) {row.scores['stlpips_alex']:.3f}" in words
        assert f"{contestant.evaluation.scores['ssim']:.3f}" in words
    assert "32 × 32 × 3 = 3,072 numbers" in words
    assert "After 1,500 steps" in words
    assert "It gives more ." in words
    assert "ldm-ae encode A B && x" in words
    assert "prefers-color-scheme:dark" in text
    assert "://" not in text


def test_page_images_equal_the_scored_ones(contestants: list[Contestant], tmp_path: Path) -> None:
    for picture in contestants[0].evaluation.first:
        name = Path(picture.row.key).with_suffix(".png")
        for place, levels in (("originals", picture.original), ("shipped", picture.reconstruction)):
            with Image.open(tmp_path / place / name) as image:
                assert image.tobytes() == levels.permute(1, 2, 0).numpy().tobytes()


def test_page_before_training_shows_only_the_pretrained_model(contestants: list[Contestant], tmp_path: Path) -> None:
    text = write(tmp_path, contestants[:1])
    page = Page(text)
    assert not [path for path in images(page) if path.startswith("reconstructed")]
    assert len([path for path in images(page) if path.startswith("shipped")]) == 3
    assert "Reload the page" in text
    assert "What longer training gives" not in text


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("scikit-image/chelsea.png", "A cat"),
        ("a/motorcycle_left-2.png", "Motorcycle left 2"),
        ("000.png", "000"),
        ("_.png", "_"),
    ],
)
def test_photo_titles_are_words(name: str, title: str) -> None:
    assert photo_title(name) == title
