"""What browser tests of any page ask, as expressions in the page, and the checks that every page must pass."""

from __future__ import annotations

from pathlib import Path

from tests.browser import Browser

BACKGROUND = """(() => {
  const colours = [document.body, document.documentElement].map(e => getComputedStyle(e).backgroundColor);
  const painted = colours.find(c => c !== 'rgba(0, 0, 0, 0)') ?? 'rgb(255, 255, 255)';
  return Math.max(...painted.match(/[0-9]+/g).slice(0, 3).map(Number));
})()"""
"""The largest of red, green and blue behind the page."""

WIDER = """[...document.body.querySelectorAll('*')]
  .filter(e => !e.closest('.scroll, dialog') && e.getClientRects().length)
  .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5)
  .map(e => e.outerHTML.slice(0, 100))"""
"""Elements that stand out of the window, but for tables that scroll on their own."""

BROKEN = "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src.slice(0, 100))"

STATE = """(() => {
  const dialog = document.getElementById('viewer'), stage = dialog.querySelector('.stage');
  const layers = [...stage.querySelectorAll('img')].map(i => i.src);
  return {
    open: dialog.open, title: dialog.querySelector('b').textContent, layers,
    cut: stage.style.getPropertyValue('--cut'), blinking: stage.classList.contains('blinking'),
    compared: dialog.querySelector('[data-part=choices] [aria-pressed=true]')?.textContent,
    focus: document.activeElement.getAttribute('data-part') ?? document.activeElement.dataset.label,
    factor: dialog.querySelector('[data-part=factor]').textContent,
    overflow: dialog.scrollWidth - dialog.clientWidth,
  };
})()"""
"""The enlarged comparison of `viewer.js`."""


def assert_page_fits(window: Browser, page: Path, *, width: int, dark: bool) -> None:
    """Assert that a page has all its images, stays within a window of this width, and follows the colour scheme."""
    window.open(page, width=width, dark=dark)
    assert window.problems() == []
    assert window.run(BROKEN) == []
    assert window.run("innerWidth") == width
    assert window.run("document.documentElement.scrollWidth") == width
    assert window.run(WIDER) == []
    assert window.run(BACKGROUND) < 64 if dark else window.run(BACKGROUND) > 192
