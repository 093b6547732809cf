"""The report and the quickstart's page: first what their text has, then what a headless browser makes of them."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import Browser
from tests.page_checks import BACKGROUND, BROKEN, STATE, WIDER, assert_page_fits
from tests.pages import Page, write_pages

PAGES = ("report", "quickstart")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("name", PAGES)
def test_page_has_a_viewport_both_colour_schemes_and_unique_ids(pages: dict[str, Path], name: str) -> None:
    page = Page(pages[name].read_text(encoding="utf-8"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert {"name": "color-scheme", "content": "light dark"} in page.all("meta")
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert ids["viewer"] == 1
    assert max(ids.values()) == 1


@pytest.mark.parametrize("name", PAGES)
def test_page_has_every_image_and_link_that_it_names(pages: dict[str, Path], name: str) -> None:
    page = Page(pages[name].read_text(encoding="utf-8"))
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert len(page.all("img")) >= 10
    for image in page.all("img"):
        assert image["alt"]
        source = image["src"] or ""
        kind, _, data = source.partition("base64,")
        content = (
            base64.b64decode(data) if kind.startswith("data:image/") else (pages[name].parent / source).read_bytes()
        )
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
    for link in page.all("a"):
        target = link["href"] or ""
        assert target[1:] in ids if target.startswith("#") else (pages[name].parent / target).exists()


@pytest.mark.parametrize("name", PAGES)
def test_page_loads_nothing_from_elsewhere(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    page = Page(text)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not page.all("link")
    assert page.all("script") == [{}]  # the viewer, inline


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", PAGES)
def test_page_fits_the_window_with_all_its_images(
    window: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    assert_page_fits(window, pages[name], width=width, dark=dark)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", PAGES)
def test_click_enlarges_a_picture_and_escape_closes_it(
    window: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    window.open(pages[name], width=width)
    before, after = window.run("[...document.images].slice(0, 2).map(i => i.src)")
    position = (
        "(() => { const v = document.querySelectorAll('.view')[1]; v.scrollIntoView({block: 'center'});"
        "const r = v.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )
    assert not window.run(STATE)["open"]
    window.click(*window.run(position))
    state = window.run(STATE)
    assert state["open"]
    assert state["layers"] == [before, after]
    assert state["cut"] == "50%"
    assert state["focus"] == "slider"
    assert state["overflow"] == 0
    window.press("ArrowRight", code=39)
    assert window.run(STATE)["cut"] == "50.5%"
    window.press("b", code=66, text="b")
    assert window.run(STATE)["blinking"]
    window.press("b", code=66, text="b")
    assert not window.run(STATE)["blinking"]
    window.press("2", code=50, text="2")
    assert window.run(STATE)["compared"] != state["compared"]
    window.press("n", code=78, text="n")
    assert window.run(STATE)["title"] != state["title"]
    window.press("Escape", code=27)
    assert not window.run(STATE)["open"]
    assert window.problems() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_enter_enlarges_the_focused_picture_and_the_button_closes_it(
    window: Browser, pages: dict[str, Path], name: str
) -> None:
    window.open(pages[name], width=1400)
    window.run("document.querySelectorAll('.view')[1].focus()")
    focused = window.run(STATE)["focus"]
    window.press("Enter", code=13, text="\r")
    assert window.run(STATE)["open"]
    assert window.run(STATE)["compared"] == focused
    window.run("document.querySelector('[data-part=close]').focus()")
    window.press("Enter", code=13, text="\r")
    state = window.run(STATE)
    assert not state["open"]
    assert state["focus"] == focused  # the focus is back
    assert window.problems() == []


@pytest.mark.slow
def test_browser_finds_the_faults_of_a_page(window: Browser, tmp_path: Path) -> None:
    """The checks above can fail."""
    page = tmp_path / "wrong.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><body><img src='missing.png'>"
        "<p style='width:2000px'>wide</p><script>console.error('an error'); undefined.method</script>"
    )
    window.open(page, width=1400, dark=True)
    found = "\n".join(window.problems())
    for words in ("an error", "TypeError", "ERR_FILE_NOT_FOUND"):
        assert words in found
    assert len(window.run(BROKEN)) == 1
    assert "wide" in window.run(WIDER)[0]
    assert window.run(BACKGROUND) == 255
