"""The page of a comparison: what its text has, and what a headless browser makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ldm_ae
from ldm_ae.comparison import Comparison, write_comparison
from ldm_ae.comparison.charts import rate_distortion
from ldm_ae.comparison.main_scores import main_scores
from ldm_ae.comparison.result import Curve
from ldm_ae.evaluation import ScoreInfo
from tests.browser import Browser
from tests.comparison.conftest import METRICS, Made
from tests.page_checks import STATE, assert_page_fits
from tests.pages import DETAILS, Page

ROWS = "[...document.querySelector('#overview tbody').rows].map(r => r.cells[0].textContent)"
HEADER = "[...document.querySelectorAll('#overview thead button')].find(b => b.textContent.startsWith('PSNR'))"
SORTED = f"{HEADER}.closest('th').getAttribute('aria-sort')"
CENTRE = """(element => {
  element.scrollIntoView({block: 'center'});
  const box = element.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})"""
STAGE = "document.querySelector('[data-part=stage]')"
ZOOM = f"getComputedStyle({STAGE}.querySelector('.layer img')).transform"


@pytest.fixture(scope="module")
def comparison(made: Made) -> Comparison:
    """The comparison of `made`, and all that a page may have: samples, losses by noise level and training curves."""
    found = ldm_ae.compare(
        [*made.arguments[:2], f"a model of a long name={made.arguments[0]}"], made.arguments[3], size=32,
        metrics=METRICS, pictures=2, baseline="jpeg",
    )  # fmt: skip
    levels = torch.arange(16 * 3 * 32 * 32).remainder(256).to(torch.uint8).view(16, 3, 32, 32)
    models = [
        replace(
            model,
            details=model.details | DETAILS,
            scores=model.scores | {"flow_loss": 1.5 + place},
            infos=model.infos | {"flow_loss": ScoreInfo(label="Flow loss", direction="lower", group="diffusion")},
            flow_losses={0.1: 1.5 + place, 0.5: 1.25, 0.9: 1.75},
            samples=levels,
            samples_compared=16,
            curves={} if place == 2 else {"psnr": Curve(steps=[10, 20, 30], values=[20.0, 22.0, 23.0 + place])},
        )
        for place, model in enumerate(found.models)
    ]
    return replace(found, models=models, failed={"broken": "reconstructions are not finite"})


@pytest.fixture(scope="module")
def page(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(comparison, tmp_path_factory.mktemp("page"))


def test_page_has_each_section_and_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    ids = Counter(attributes["id"] for _, attributes in found.elements if "id" in attributes)
    assert max(ids.values()) == 1
    assert ids.keys() >= {"overview", "images", "rate", "latents", "diffusion", "training", "models", "protocol"}
    assert all((link["href"] or "")[1:] in ids for link in found.all("a"))
    assert all(image["alt"] and (image["src"] or "").startswith("data:") for image in found.all("img"))
    for words in ("Spectrum of the latents", "Correlation between channels", "Rendered text", "Other results"):
        assert words in found.text
    assert "://" not in text
    assert not found.all("link")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.all("meta")


def test_rate_distortion_has_only_scores_of_images(comparison: Comparison) -> None:
    models = [
        replace(
            model, scores=model.scores | {"text_error": 0.25},
            infos=model.infos | {"text_error": ScoreInfo(label="Misread text", direction="lower")},
        )
        for model in comparison.models
    ]  # fmt: skip
    assert "text_error" in main_scores(models)
    others = [replace(model, scores={"text_other": 0.5, "knn": 0.9}, infos={}) for model in comparison.models]
    assert "knn" not in main_scores(others)
    assert "knn" in main_scores([replace(model, scores={"knn": 0.9}) for model in others])  # nothing else to show
    charts = rate_distortion(replace(comparison, models=models))
    assert [chart.name for chart in charts] == ["rate_psnr", "rate_ssim"]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_page_fits_the_window_with_all_its_images(window: Browser, page: Path, width: int, dark: bool) -> None:
    assert_page_fits(window, page, width=width, dark=dark)
    if width == 400:  # the tables scroll, and nothing else
        assert window.run("document.querySelector('#overview .scroll').scrollWidth") > width
    charts = window.run("[...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect().height)")
    assert len(charts) >= 5
    assert min(charts) > 100


def click(window: Browser, element: str) -> None:
    window.click(*window.run(f"{CENTRE}({element})"))


@pytest.mark.slow
@pytest.mark.parametrize("keys", [False, True], ids=["click", "keyboard"])
def test_table_sorts_by_a_column_and_turns_around(
    window: Browser, page: Path, comparison: Comparison, keys: bool
) -> None:
    window.open(page, width=1400)
    scores = {name: found["psnr"] for name, found in comparison.scores.items()}
    best_first = sorted(scores, key=lambda name: -scores[name])
    assert window.run(SORTED) is None
    window.run(f"{HEADER}.focus()")
    for order, expected in (("descending", best_first), ("ascending", sorted(scores, key=lambda name: scores[name]))):
        if keys:
            window.press("Enter", code=13, text="\r")
        else:
            click(window, HEADER)
        assert window.run(SORTED) == order
        assert window.run(ROWS) == expected
    if keys:
        window.run("document.querySelector('#overview thead button').focus()")
        window.press(" ", code=32, text=" ")
        assert window.run(ROWS) == sorted(scores, key=str.lower)
        assert window.run(SORTED) is None
    assert window.problems() == []


def open_viewer(window: Browser, page: Path, width: int) -> list[float]:
    """Enlarge the first model's reconstruction, and return the centre of the stage."""
    window.open(page, width=width)
    click(window, "document.querySelectorAll('#images .view')[1]")
    state = window.run(STATE)
    assert state["open"]
    assert state["overflow"] == 0
    assert len(state["layers"]) == 2
    centre: list[float] = window.run(f"{CENTRE}({STAGE})")
    return centre


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_slider_follows_the_mouse_and_the_arrow_keys(window: Browser, page: Path, width: int) -> None:
    x, y = open_viewer(window, page, width)
    assert window.run(STATE)["cut"] == "50%"
    quarter = window.run(f"{STAGE}.clientWidth") / 4
    window.drag((x, y), (x + quarter, y))
    assert float(window.run(STATE)["cut"].rstrip("%")) == pytest.approx(75, abs=0.5)
    window.press("ArrowLeft", code=37)
    assert float(window.run(STATE)["cut"].rstrip("%")) == pytest.approx(74.5, abs=0.5)
    assert window.problems() == []


@pytest.mark.slow
def test_two_models_are_compared_with_each_other(window: Browser, page: Path) -> None:
    open_viewer(window, page, 1400)
    window.press("2", code=50, text="2")
    left = "document.querySelector('[data-part=against]')"
    window.run(f"{left}.value = '1', {left}.dispatchEvent(new Event('change'))")
    state = window.run(STATE)
    of_page: list[str] = window.run("[...document.querySelectorAll('#images .views')[0].querySelectorAll('img')]"
                                    ".map(i => i.src)")  # fmt: skip
    assert state["layers"] == of_page[1:3]
    assert window.run("document.querySelector('[data-part=left]').textContent") == "one_&_first"
    assert window.run("document.querySelector('[data-part=right]').textContent") == "two"


def factor(window: Browser) -> float:
    """Return the zoom that the viewer states, after checking that the images have it."""
    stated = float(window.run(STATE)["factor"].rstrip("×"))
    matrix: Any = window.run(ZOOM)
    drawn = 1.0 if matrix == "none" else float(matrix.removeprefix("matrix(").split(",")[0])
    assert drawn == pytest.approx(stated, rel=0.05)
    return stated


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_zoom_by_buttons_keys_wheel_and_fingers(window: Browser, page: Path, width: int) -> None:
    x, y = open_viewer(window, page, width)
    assert factor(window) == 1
    click(window, "document.querySelector('[data-part=larger]')")
    assert factor(window) == 2
    click(window, "document.querySelector('[data-part=smaller]')")
    assert factor(window) == 1
    window.press("+", code=187, text="+")
    window.press("+", code=187, text="+")
    assert factor(window) == 4
    window.press("-", code=189, text="-")
    assert factor(window) == 2
    window.press("0", code=48, text="0")
    assert factor(window) == 1
    window.scroll(x, y, down=-100)
    after_wheel = factor(window)
    assert after_wheel > 1
    window.scroll(x, y, down=100)
    assert factor(window) < after_wheel
    window.press("0", code=48, text="0")
    window.pinch(x, y, start=20, end=60)
    assert factor(window) == pytest.approx(3, rel=0.1)
    window.press("Escape", code=27)
    assert not window.run(STATE)["open"]
    assert window.problems() == []


@pytest.mark.slow
def test_enlarged_part_moves_with_the_mouse(window: Browser, page: Path) -> None:
    x, y = open_viewer(window, page, 1400)
    window.press("+", code=187, text="+")
    before = window.run(ZOOM)
    window.drag((x + 100, y + 100), (x + 50, y + 60))  # away from the line, which would move otherwise
    assert window.run(ZOOM) != before
    assert window.run(STATE)["cut"] == "50%"
    assert factor(window) == 2
