"""Charts as inline SVG: lines and points over two axes, in the colours of the page, light and dark.

A chart is data. `svg` draws it for a page; other programs, such as matplotlib, can draw the same data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
"""Number of colours; series with a higher number have the same colours and another dash pattern."""
LIGHT = ("#3b6ea5", "#c2552d", "#2f7d4f", "#8a5ab5", "#a67c00", "#0f8b8d", "#b33a6b", "#5c5a55")
"""Colours on white, of about equal lightness."""
_DARK = ("#7fb0e0", "#f0936a", "#74c191", "#c3a0e8", "#e0bf4a", "#5cc9ca", "#ec8fb3", "#b5b0a5")
DASHES = ("", "6 4", "2 3", "8 3 2 3")
"""Dash patterns of lines, in units of the chart."""

WIDTH, HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 12, 44
_TICKS = 5
_MARK = 4.5

PLOT_STYLE = (
    ":root{" + "".join(f"--c{i}:{colour};" for i, colour in enumerate(LIGHT)) + "}"
    "@media(prefers-color-scheme:dark){:root{" + "".join(f"--c{i}:{colour};" for i, colour in enumerate(_DARK)) + "}}"
    + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(COLOURS))
    + ".charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr))}"
    ".chart{margin:0}.chart svg{display:block;width:100%;height:auto;max-width:44rem;margin:0 auto}"
    ".chart figcaption{margin:0 0 .4rem}"
    ".chart text{font:12px system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;"
    "fill:var(--soft)}"
    ".chart .grid{stroke:var(--line);stroke-width:1}.chart .axis{stroke:var(--soft);stroke-width:1}"
    ".chart .line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
    ".chart .mark{fill:var(--c);stroke:var(--card);stroke-width:1.5}"
    ".chart .mark:hover{stroke:var(--ink)}"
    ".legend{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:.2rem 0 .9rem;font-size:.85rem;list-style:none;"
    "padding:0}.legend li{display:flex;gap:.45rem;align-items:center;overflow-wrap:anywhere}"
    ".legend svg{flex:none;width:1.6rem;height:.8rem}"
)  # fmt: skip
"""Style of charts and legends, for a page that has the report's style."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one name. Points that are not finite, or not above 0 on a logarithmic axis, are not drawn."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    """Number of the colour, dash pattern and mark, which is that of the model in every chart."""
    line: bool = True
    """Whether the points are joined."""
    marks: bool = False
    """Whether each point has a mark."""
    labels: Sequence[str] = ()
    """Text of each point, shown on hovering; by default the name and both values."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Series over two axes."""

    name: str
    """Short name, such as `spectra`, for file names."""
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False

    def points(self, series: Series) -> list[tuple[float, float, str]]:
        """Return the points of a series that can be drawn, with their texts."""
        labels = series.labels or [
            f"{series.name}: {_text(x)}, {_text(y)}" for x, y in zip(series.x, series.y, strict=True)
        ]
        found = []
        for x, y, label in zip(series.x, series.y, labels, strict=True):
            fits = math.isfinite(x) and math.isfinite(y) and (x > 0 or not self.x_log) and (y > 0 or not self.y_log)
            if fits:
                found.append((float(x), float(y), label))
        return found

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(self.points(series) for series in self.series)


def svg(chart: Chart) -> str:
    """Return a chart as a figure with its title; an empty string for a chart without points."""
    drawn = [(series, chart.points(series)) for series in chart.series]
    every = [point for _, points in drawn for point in points]
    if not every:
        return ""
    x_axis = _Axis([x for x, _, _ in every], log=chart.x_log, start=_LEFT, end=WIDTH - _RIGHT)
    y_axis = _Axis([y for _, y, _ in every], log=chart.y_log, start=HEIGHT - _BOTTOM, end=_TOP)
    parts = [_frame(chart, x_axis, y_axis)]
    for series, points in drawn:
        places = [(x_axis.place(x), y_axis.place(y), label) for x, y, label in points]
        css = f"c{series.colour % COLOURS}"
        if series.line and len(places) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
            parts.append(
                f'<path class="line {css}" d="{path}"{_dash(series.colour)}><title>{escape(series.name)}</title></path>'
            )
        if series.marks or len(places) == 1:
            parts += [
                f'<path class="mark {css}" d="{mark(series.colour, x, y)}"><title>{escape(label)}</title></path>'
                for x, y, label in places
            ]
    return (
        f'<figure class="chart"><figcaption><b>{escape(chart.title)}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Return the names of series, each with its line and mark.

    Args:
        names: Names, and the numbers of their colours.
    """
    items = "".join(
        f'<li><svg class="c{colour % COLOURS} chart" viewBox="0 0 32 16" aria-hidden="true">'
        f'<path class="line c{colour % COLOURS}" d="M1 8L31 8"{_dash(colour)}/>'
        f'<path class="mark c{colour % COLOURS}" d="{mark(colour, 16.0, 8.0)}"/></svg>{escape(name)}</li>'
        for name, colour in names
    )
    return f'<ul class="legend">{items}</ul>'


def swatch(number: int) -> str:
    """Return a small square in the colour of a series."""
    return f'<i class="swatch c{number % COLOURS}"></i>'


def mark(number: int, x: float, y: float, size: float = _MARK) -> str:
    """Return the path of a mark around a point: a circle, a square, a diamond or a triangle, so that series differ
    without their colours."""
    kind = number % 4
    if kind == 0:
        return (
            f"M{x - size:.1f} {y:.1f}a{size:g} {size:g} 0 1 0 {2 * size:g} 0a{size:g} {size:g} 0 1 0 {-2 * size:g} 0z"
        )
    if kind == 1:
        half = 0.88 * size
        return f"M{x - half:.1f} {y - half:.1f}h{2 * half:.2f}v{2 * half:.2f}h{-2 * half:.2f}z"
    if kind == 2:
        reach = 1.25 * size
        return f"M{x:.1f} {y - reach:.1f}l{reach:.2f} {reach:.2f}l{-reach:.2f} {reach:.2f}l{-reach:.2f} {-reach:.2f}z"
    reach = 1.15 * size
    return f"M{x:.1f} {y - reach:.1f}l{reach:.2f} {1.8 * reach:.2f}h{-2 * reach:.2f}z"


class _Axis:
    """Places of values between two ends of the chart, and the values that are written.

    Args:
        values: Finite values, at least one; above 0 for a logarithmic axis.
        log: Whether the axis is logarithmic.
        start: Coordinate of the axis's low end.
        end: Coordinate of its high end.
    """

    def __init__(self, values: Sequence[float], *, log: bool, start: float, end: float):
        self._log = log
        low, high = (self._scaled(value) for value in (min(values), max(values)))
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-300):
            spread = 0.5 if log else max(abs(low) / 2, 0.5)
            low, high = low - spread, high + spread
        margin = 0.05 * (high - low)
        self._low, self._high = low - margin, high + margin
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """Return the coordinate of a value."""
        return self._start + (self._scaled(value) - self._low) / (self._high - self._low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return round values inside the axis."""
        if not self._log:
            return _round_values(self._low, self._high)
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            inside = [value for value in found if self._low <= math.log10(value) <= self._high]
            if len(inside) > 2:
                return inside[:: -(-len(inside) // (_TICKS + 2))]
        return [value for value in _round_values(10**self._low, 10**self._high) if value > 0]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value


def _round_values(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _frame(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> str:
    """Return the grid, the written values and the names of both axes."""
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>'
                     f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_text(value)}</text>')  # fmt: skip
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
                     f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_text(value)}</text>')  # fmt: skip
    middle = (_TOP + bottom) / 2
    return (
        "".join(parts)
        + f'<path class="axis" fill="none" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
        + f'<text x="{(_LEFT + right) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_label)}</text>'
        + f'<text x="12" y="{middle:g}" text-anchor="middle" transform="rotate(-90 12 {middle:g})">'
        f"{escape(chart.y_label)}</text>"
    )


def _dash(colour: int) -> str:
    pattern = DASHES[colour // COLOURS % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _text(value: float) -> str:
    """Return a value in at most four digits."""
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"
