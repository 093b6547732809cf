"""The page of an exploration: what its text has, and what a headless browser makes of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.browser import Browser
from tests.exploration.conftest import Made
from tests.page_checks import assert_page_fits
from tests.pages import Page

MAP = "document.querySelector('.map').map"


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_page_has_each_section_and_loads_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(kind)
    text = made.page.read_text(encoding="utf-8")
    found = Page(text)
    ids = Counter(attributes["id"] for _, attributes in found.elements if "id" in attributes)
    assert max(ids.values()) == 1
    assert ids.keys() == {*(section.place for section in made.exploration.sections), "protocol", "viewer"}
    assert all((link["href"] or "")[1:] in ids for link in found.all("a"))
    assert all(image["alt"] and (image["src"] or "").startswith("data:") for image in found.all("img"))
    assert "://" not in text
    assert not found.all("link")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "width", "dark"), [("continuous", 400, True), ("discrete", 1400, False)])
def test_page_fits_the_window_with_all_its_images(
    window: Browser, kind: str, width: int, dark: bool, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(kind)
    assert_page_fits(window, made.page, width=width, dark=dark)


def _show(window: Browser, made: Made) -> None:
    window.open(made.page, width=1400)
    window.run("document.querySelector('.plane').scrollIntoView()")


def _point(window: Browser, number: int) -> list[float]:
    """Return the place of an image of the map in the window."""
    found: list[float] = window.run(
        f"(() => {{ const box = document.querySelector('.plane canvas').getBoundingClientRect();"
        f"const [x, y] = {MAP}.place({number}); return [box.x + x, box.y + y]; }})()"
    )
    return found


def _state(window: Browser) -> dict[str, Any]:
    window.run("new Promise(kept => requestAnimationFrame(() => requestAnimationFrame(kept)))")
    found: dict[str, Any] = window.run(f"{MAP}.state")
    return found


@pytest.mark.slow
def test_map_shows_the_image_under_the_pointer_and_zooms(window: Browser, continuous: Made) -> None:
    _show(window, continuous)
    x, y = _point(window, 3)
    window.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert _state(window)["chosen"] == 3
    tip = "document.querySelector('[data-part=tip]')"
    assert window.run(f"{tip}.hidden") is False
    name = continuous.exploration.values["map"]["images"][3]
    assert window.run(f"{tip}.querySelector('span').textContent") == name
    assert window.run(f"{tip}.querySelector('b').textContent") == name.partition("/")[0]
    window.scroll(x, y, down=-300)
    assert _state(window)["factor"] > 1
    # The browser rounds the pointer's place to whole pixels, around which the map is enlarged.
    assert _point(window, 3) == pytest.approx([x, y], abs=1)
    x, y = _point(window, 3)
    window.drag((x, y), (x + 50, y + 20))
    assert _point(window, 3) == pytest.approx([x + 50, y + 20], abs=1)
    assert window.problems() == []


@pytest.mark.slow
def test_map_switches_classes_and_thumbnails(window: Browser, continuous: Made) -> None:
    _show(window, continuous)
    buttons = "document.querySelectorAll('[data-part=classes] button')"
    assert window.run(f"[...{buttons}].map(b => b.textContent)") == ["cats", "dogs", "All / none"]
    assert _state(window)["shown"] == 12
    window.run(f"{buttons}[0].click()")
    assert _state(window)["shown"] == 6
    assert window.run(f"[...{buttons}].slice(0, 2).map(b => b.getAttribute('aria-pressed'))") == ["false", "true"]
    window.run(f"{buttons}[2].click()")
    assert _state(window)["shown"] == 12
    assert not _state(window)["thumbnails"]
    window.run("document.querySelector('[data-part=thumbnails]').click()")
    assert _state(window)["thumbnails"]
    assert window.problems() == []


@pytest.mark.slow
def test_slider_and_pad_enlarge_an_image(window: Browser, continuous: Made) -> None:
    window.open(continuous.page, width=400)
    slider = "document.querySelector('.frames input')"
    window.run(f"{slider}.value = 6, {slider}.dispatchEvent(new Event('input'))")
    shown, last = (
        window.run(f"document.querySelector('.frames .run {part}').src")
        for part in (".large img", ".steps :last-child")
    )
    assert shown == last
    window.run("document.querySelector('.pad .sheet').focus()")
    window.press("ArrowRight", code=39)
    assert "1.5 σ" in window.run("document.querySelector('.pad p').textContent")
    assert window.run("document.querySelector('.pad canvas').getContext('2d').getImageData(9, 9, 1, 1).data[3]") == 255
    assert window.problems() == []
