"""Training runs in a comparison: the curves of their validation scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ldm_ae.comparison.charts import training_curves
from ldm_ae.comparison.curves import run_of, validation_curves
from ldm_ae.comparison.result import Curve, ModelResult
from ldm_ae.evaluation import ScoreInfo
from tests.comparison.conftest import run as run_compare
from tests.pages import Page
from tests.pictures import write_class_folders
from tests.training.common import run as train
from tests.training.conftest import write_config

LINES = [
    {"step": 10, "kind": "train", "seconds": 1.0, "loss": 3.0},
    {"step": 10, "kind": "validation", "seconds": 1.5, "psnr": 20.0, "ssim": 0.5},
    {"step": 20, "phase": 1, "kind": "validation", "seconds": 3.0, "psnr": 22.0, "ssim": float("nan")},
    {"step": 10, "kind": "validation", "seconds": 1.0, "psnr": 21.0},
    {"step": 20, "kind": "alarm", "alarm": "spike", "message": "a word"},
]


def write_lines(folder: Path, lines: list[dict]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 30, "kin')
    return folder


def test_curves_have_the_last_value_of_each_step(tmp_path: Path) -> None:
    assert validation_curves(write_lines(tmp_path / "run", LINES)) == {
        "psnr": Curve(steps=[10, 20], values=[21.0, 22.0]), "ssim": Curve(steps=[10], values=[0.5])
    }  # fmt: skip


def test_run_is_found_by_each_of_its_names(tmp_path: Path) -> None:
    run = write_lines(tmp_path / "runs@home" / "one", LINES)
    (run / "checkpoints" / "step-00000010" / "model").mkdir(parents=True)
    for name in ("", "@best", "@10", "/checkpoints/step-00000010", "/checkpoints/step-00000010/model"):
        assert run_of(f"{run}{name}") == run, name
    (tmp_path / "model").mkdir()
    for other in (tmp_path / "model", "kl-f8c4-small", "hf:owner/name", "hf:owner/name@main"):
        assert run_of(str(other)) is None, other


def test_chart_names_the_score_and_keeps_the_models_colours() -> None:
    def model(name: str, curves: dict[str, Curve]) -> ModelResult:
        return ModelResult(
            name=name, model=name, scores={}, baseline={}, details={}, protocol={}, skipped={}, pictures=[], images=1,
            infos={"psnr": ScoreInfo(label="PSNR", direction="higher", unit="dB")}, curves=curves,
        )  # fmt: skip

    curve = Curve(steps=[10, 20], values=[21.0, 22.0])
    (chart,) = training_curves([model("no run", {}), model("a run", {"psnr": curve})])
    (series,) = chart.series
    assert (chart.title, chart.y_label, chart.x_label) == ("PSNR ↑", "PSNR, dB", "step")
    assert (series.name, series.colour, list(series.x), list(series.y)) == ("a run", 1, [10, 20], [21.0, 22.0])


@pytest.mark.slow
def test_runs_of_training_are_compared_with_their_curves(tmp_path: Path) -> None:
    images = write_class_folders(tmp_path / "images")
    first = train(write_config(tmp_path / "tiny.yaml", images), tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "second", symlinks=True))
    out = tmp_path / "out"
    assert run_compare([str(first), f"{second}@best", str(images), "--out", str(out), "--limit", "2"]) == 0
    found = json.loads((out / "metrics.json").read_text())["models"]
    assert list(found) == ["first", "second@best"]
    of_run = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["psnr"] for line in of_run if line["kind"] == "validation"}
    assert len(scores) > 1
    for model in found.values():
        assert model["curves"]["psnr"] == {"steps": list(scores), "values": list(scores.values())}
    page = Page((out / "compare.html").read_text(encoding="utf-8"))
    assert "training" in {section.get("id") for section in page.all("section")}
    assert "Validation during training" in page.text
