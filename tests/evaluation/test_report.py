from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import evaluate, to_uint8_image, write_report
from ldm_ae.evaluation.report import page
from ldm_ae.evaluation.report import write as report
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.models import KLAutoencoder
from tests.evaluation.stubs import IdentityAutoencoder, MeanDistance, PixelFeatures, loader, pictures
from tests.pages import Page

HOSTILE = '<script>alert("1")</script>'


@pytest.fixture
def evaluation(tiny_model: KLAutoencoder) -> Evaluation:
    keys = [HOSTILE, *(f"{i}.png" for i in range(1, 6))]
    images = loader(6, 4, keys=keys)
    images.rejected = {HOSTILE: HOSTILE}
    return evaluate(
        tiny_model,
        images,
        source=HOSTILE,
        transform_description={HOSTILE: HOSTILE},
        model_name=HOSTILE,
        perceptual=MeanDistance(),
        features=PixelFeatures(),
        device="cpu",
        pictures=2,
    )


def test_report_is_valid_html_without_external_resources(evaluation: Evaluation, tmp_path: Path) -> None:
    path = write_report(evaluation, tmp_path / "new" / "report")
    assert path == tmp_path / "new" / "report" / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert page.all("script") == [{}]  # the viewer, inline
    assert not page.all("link")
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


def test_report_escapes_text_from_data(evaluation: Evaluation) -> None:
    text = report.render(evaluation)
    assert text.count("<script") == 1  # the viewer
    page = Page(text)
    # title, heading, facts, gallery, table and protocol
    assert page.text.count(HOSTILE) >= 6


def test_report_allows_browsers_the_viewers_script_alone(evaluation: Evaluation) -> None:
    page = Page(report.render(evaluation))
    policy = next(meta["content"] or "" for meta in page.all("meta") if meta.get("http-equiv"))
    script = report.render(evaluation).partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_report_shows_the_protocol_above_the_pictures(evaluation: Evaluation) -> None:
    text = report.render(evaluation)
    before = Page(text.partition("<main>")[2].partition('<section id="images">')[0]).text
    for words in ("6 images of 32x32 pixels", "1 image rejected", "posterior's mode", "Precision fp32", "torch 2."):
        assert words in before
    assert str(evaluation.protocol["model"]["sha256"])[:12] in before


def test_report_greys_a_frechet_distance_over_few_images(evaluation: Evaluation) -> None:
    """Its value, its reason and the thumbnail's value are there, but no card and no verdict."""
    reason = "over 6 images, and reliable from 2,000 on"
    text = report.render(evaluation)
    cards, _, after = text.partition("</ul>")
    assert "Fréchet" not in cards.partition('<ul class="headline">')[2]
    paragraph = after.partition('<p class="unsure">')[2].partition("</p>")[0]
    assert "Fréchet distance, colour" in paragraph
    assert page.number(evaluation.scores["frechet_colour"]) in paragraph
    assert reason in paragraph
    assert f"Grey, as it is {reason}." in text.partition('<table class="scores">')[2]
    lines = [line for line in summary_lines(evaluation) if line.startswith("frechet_colour")]
    assert lines[0].endswith(f"({reason})")
    enough = replace(evaluation, images=evaluation.images * 334)
    text = report.render(enough)
    assert 'unsure">' not in text
    assert "Fréchet distance, colour" in text.partition('<ul class="headline">')[2].partition("</ul>")[0]
    assert "reliable" not in "".join(summary_lines(enough))


def test_report_shows_few_images_once(evaluation: Evaluation) -> None:
    few = replace(evaluation, images=evaluation.images[:2])
    assert '<section id="worst">' in report.render(evaluation)
    assert '<section id="worst">' not in report.render(few)
    assert "<h2>The images</h2>" in report.render(few)


def test_report_shows_scores_beside_their_baseline(evaluation: Evaluation) -> None:
    text = Page(report.render(evaluation)).text
    for name in ("psnr", "ssim", "mean_distance", "frechet_colour"):
        assert page.number(evaluation.scores[name]) in text
        assert page.number(evaluation.scores[f"bicubic_{name}"]) in text
    assert "Fréchet distance, colour" in text
    assert "rFID" in text  # named only to say that it is not this
    assert "not comparable with rFID" in text
    assert "error ×4" in text
    assert "25 % of the range" in text


def test_verdicts_follow_the_direction_of_each_score(evaluation: Evaluation) -> None:
    scores = evaluation.scores
    text = Page(report.render(evaluation)).text
    expected = {
        f"better than the thumbnail's {page.number(scores[f'bicubic_{name}'])}": better
        for name, better in (
            ("psnr", scores["psnr"] > scores["bicubic_psnr"]),
            ("mean_distance", scores["mean_distance"] < scores["bicubic_mean_distance"]),
        )
    }
    assert {phrase: phrase in text for phrase in expected} == expected
    perfect = evaluate(
        IdentityAutoencoder(0.5 / 127.5 * 1.01),
        loader(),
        source="pictures",
        transform_description={},
        model_name="nearly perfect",
        device="cpu",
    )
    assert "worse than the thumbnail's 100.00" in Page(report.render(perfect)).text


def test_report_images_equal_the_evaluated_ones(evaluation: Evaluation) -> None:
    page = Page(report.render(evaluation))
    sources = [image["src"] or "" for image in page.all("img")]
    # first, worst and best two of four views each; two strips of the original and four channels
    assert len(sources) == 3 * 2 * 4 + 2 * 5
    decoded = [Image.open(io.BytesIO(base64.b64decode(s.partition("base64,")[2]))) for s in sources]
    assert np.array_equal(np.array(decoded[0]), np.array(to_uint8_image(pictures(1)[0])))
    assert decoded[-1].size == (8, 8)
    assert all(image["alt"] for image in page.all("img"))


def test_large_report_images_are_webp() -> None:
    picture = to_uint8_image(pictures(1)[0])
    assert page.data_uri(picture).startswith("data:image/png;base64,")
    uri = page.data_uri(picture, largest_png=32 * 32 - 1)
    assert uri.startswith("data:image/webp;base64,")
    again = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    difference = np.abs(np.array(again).astype(int) - np.array(picture).astype(int))
    assert difference.mean() < 6  # levels: lossy, by 4:2:0 chroma above all


def test_metrics_json_contains_every_number(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["scores"] == evaluation.scores
    assert metrics["protocol"] == evaluation.protocol
    assert [row["key"] for row in metrics["images"]] == [row.key for row in evaluation.images]
    assert metrics["images"][3]["psnr"] == evaluation.images[3].scores["psnr"]
    assert [c["std"] for c in metrics["latent_channels"]] == [c.std for c in evaluation.channels]


def test_long_table_is_truncated_with_a_note(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "TABLE_ROWS", 2)
    text = report.render(evaluation)
    assert "The first 2 of 6; metrics.json has all." in text
    table = text.partition("The first 2 of 6")[2]
    assert table.count("<tr>") == 1 + 2


def test_report_of_one_image_without_images_or_rate(tmp_path: Path) -> None:
    result = evaluate(
        IdentityAutoencoder(),
        loader(1),
        source="one",
        transform_description={},
        model_name="identity",
        device="cpu",
        pictures=0,
    )
    page = Page(write_report(result, tmp_path).read_text(encoding="utf-8"))
    assert page.all("img") == []
    assert "1 image " in page.text
    assert "equal to the thumbnail's 100.00" in page.text


def test_unwritable_report_folder_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        write_report(evaluation, tmp_path / "file" / "report")


def test_report_target_that_is_a_folder_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot write the report to"):
        write_report(evaluation, tmp_path)
