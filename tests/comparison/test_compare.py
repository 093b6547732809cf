"""`ldm-ae compare` and `ldm_ae.compare`: equal results, resumption, refusals, and models that fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import ldm_ae
from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import named_metrics
from ldm_ae.models import load_autoencoder
from tests.comparison.conftest import METRICS, Made, run

NAMES = ["one_&_first", "two"]


def results(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_scores_are_those_of_evaluate(made: Made) -> None:
    images = made.arguments[3]
    for name, model in zip(NAMES, made.arguments, strict=False):
        alone = ldm_ae.evaluate(model, images, size=32, metrics=METRICS)
        assert results(made.folder)["models"][name]["scores"] == pytest.approx(alone.metrics)


def test_model_that_fails_is_listed_and_the_others_are_compared(made: Made) -> None:
    assert made.status == 2
    found = results(made.folder)
    assert list(found["models"]) == NAMES
    assert "not finite" in found["failed"]["broken"]
    assert "ldm-ae: error: 1 of 3 models failed: broken" in made.errors
    assert "broken failed: " in made.output
    assert "1 model failed" in (made.folder / "compare.html").read_text()


def test_best_values_are_marked_in_every_table(made: Made) -> None:
    found = results(made.folder)
    (best,) = found["best"]["psnr"]
    values = {name: model["scores"]["psnr"] for name, model in found["models"].items()}
    assert best == max(values, key=values.__getitem__)
    (line,) = [line for line in made.output.splitlines() if line.startswith("psnr")]
    assert line.count("*") == 1
    assert f"{values[best]:.4g}*" in line
    assert f"**{values[best]:.2f}**" in (made.folder / "table.md").read_text()
    assert rf"\textbf{{{values[best]:.2f}}}" in (made.folder / "table.tex").read_text()


def test_names_are_escaped_in_markdown_latex_and_html(made: Made) -> None:
    assert r"| one\_&\_first |" in (made.folder / "table.md").read_text()
    assert r"one\_\&\_first &" in (made.folder / "table.tex").read_text()
    page = (made.folder / "compare.html").read_text()
    assert "one_&amp;_first" in page
    assert "one_&_first" not in page


def test_codecs_are_measured_at_the_models_rates(made: Made) -> None:
    codecs = results(made.folder)["codecs"]
    assert {model for codec in codecs for model in codec["models"]} == set(NAMES)
    for codec in codecs:
        assert codec["scores"].keys() >= {"psnr", "ssim"}
        caption = f">{codec['name']}<br>"  # with scores of the image
        assert caption in (made.folder / "compare.html").read_text()


def test_figures_are_written(made: Made) -> None:
    names = {path.name for path in (made.folder / "figures").iterdir()}
    assert names >= {"reconstructions.png", "spectrum.png"} or len(names) >= 3, names
    for name in names:
        assert (made.folder / "figures" / name).read_bytes()[:4] == b"\x89PNG"


def test_finished_results_are_read_and_a_further_model_is_added(
    made: Made, tmp_path: Path, evaluated: list[str]
) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "out"))
    models, images = made.arguments[:2], made.arguments[3]
    assert run([*models, images, "--out", str(folder)]) == 0
    assert evaluated == []
    before = results(made.folder)["models"]
    assert results(folder)["models"] == before
    shutil.rmtree(next((folder / "models").glob("two-*")))
    assert run([*models, images, "--out", str(folder)]) == 0
    assert evaluated == ["two"]
    assert {name: model["scores"] for name, model in results(folder)["models"].items()} == {
        name: model["scores"] for name, model in before.items()
    }


def test_interruption_keeps_finished_results_and_says_so(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "out"))
    shutil.rmtree(next((folder / "models").glob("two-*")))

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["ldm_ae.comparison.compare"], "evaluate", interrupt)
    arguments = [*made.arguments[:2], made.arguments[3]]
    assert run([*arguments, "--out", str(folder)]) == 130
    assert f"note: finished results are kept in {folder}; the same command resumes there" in capsys.readouterr().err
    assert len(list((folder / "models").glob("one_*"))) == 1


def test_other_protocol_is_refused_and_replaced_on_request(
    made: Made, tmp_path: Path, evaluated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "out"))
    model, images = made.arguments[0], made.arguments[3]
    assert run([model, images, "--out", str(folder), "--limit", "3"]) == 2
    words = capsys.readouterr().err
    assert "holds a comparison under another protocol" in words
    assert "add --overwrite" in words
    assert "Traceback" not in words
    assert evaluated == []
    assert results(folder) == results(made.folder)
    assert run([model, images, "--out", str(folder), "--limit", "3", "--overwrite"]) == 0
    assert evaluated == ["one_&_first"]
    assert results(folder)["protocol"]["images"]["count"] == 3


@pytest.mark.slow
def test_python_gives_the_same_as_the_command_in_a_data_frame(made: Made) -> None:
    pytest.importorskip("pandas")
    images = made.arguments[3]
    models = {name: load_autoencoder(path) for name, path in zip(NAMES, made.arguments, strict=False)}
    before = {name: next(model.parameters()).clone() for name, model in models.items()}
    found = ldm_ae.compare(models, images, size=32, metrics=METRICS, pictures=1)
    stored = results(made.folder)["models"]
    assert found.scores == {name: pytest.approx(stored[name]["scores"]) for name in NAMES}
    frame = found.to_pandas()
    assert list(frame.index) == NAMES
    assert frame.loc["two", "psnr"] == found.scores["two"]["psnr"]
    assert found.best("psnr") == results(made.folder)["best"]["psnr"]
    assert found.page is None
    for name, model in models.items():
        assert torch.equal(next(model.parameters()), before[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--diffusion", "0"], "diffusion is 0 steps; it must be at least 1"),
        (["--diffusion-images", "x"], "--diffusion-images has no effect without --diffusion"),
        (["--batch-size", "0"], "the batch size must be at least 1 and workers at least 0; got 0 and 0"),
        (["--pictures", "0"], "pictures is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    made: Made, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [made.arguments[0], made.arguments[3], "--out", str(tmp_path / "out")]
    assert run([*arguments, *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_missing_images_are_named(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*made.arguments[:2], "--out", str(tmp_path / "out")]) == 2
    assert "the images after it are missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_model_is_no_list() -> None:
    with pytest.raises(UserError, match=r"got one model; ldm_ae\.evaluate scores one"):
        ldm_ae.compare("kl-f8c4-small", "photos:train")  # type: ignore[arg-type]


def test_metrics_of_the_set_are_known() -> None:
    names = [metric.name for metric in named_metrics(["compare"], perceptual="none", features="none")]
    assert {"psnr", "text_error", "storage", "equivariance", "cost"} <= set(names)
