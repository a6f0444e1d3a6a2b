"""Curves as an inline SVG with axes, and the numbers that the pointer shows beside it.

The one idea: the picture is complete without a script. The script of the page only adds what is under the pointer, from
numbers that stand beside the picture as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from surogate.html_page import text
from surogate.report.curves import Curve, Point
from surogate.visible_text import visible

WIDTH, HEIGHT = 560, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 12, 26
_LOG_RATIO = 12.0
"""Spread of values from which on a logarithmic axis is used, where a chart allows it."""
_SMALLEST_SPAN = 1e-5
"""Of an axis, relative to its values: what differs by less is rounding."""
NUM_COLORS = 6


@dataclass(frozen=True)
class Axis:
    """Where values lie in a picture.

    Attributes:
        low: value at `start`.
        high: value at `stop`.
        start: pixel.
        stop: pixel.
        is_log: equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the pixel of a value, at the border where it lies outside."""
        low, high, at = (math.log10(v) for v in (self.low, self.high, max(value, self.low))) if self.is_log else (
            self.low, self.high, value,
        )  # fmt: skip
        share = (at - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, count: int) -> list[float]:
        """Return round values to write on it."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = max(1, math.ceil((len(decades) - 1) / count))
            factors = (1.0, 2.0, 5.0) if len(decades) <= 3 else (1.0, 3.0) if len(decades) <= 4 else (1.0,)
            values = [factor * 10.0**power for power in decades[::every] for factor in factors]
            return [value for value in values if self.low <= value <= self.high]
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def draw(
    curves: Sequence[Curve], *, title: str, unit: str, may_be_log: bool = False, floor: float | None = None
) -> str:
    """Draw a figure.

    Args:
        curves: at least one with a point or a gap.
        title: of the figure.
        unit: of its values.
        may_be_log: use a logarithmic axis where the values span much.
        floor: value that the axis reaches down to at least.
    """
    x_axis = _x_axis(curves)
    y_axis = _y_axis(curves, may_be_log, floor)
    body = "".join(
        [*_grid(x_axis, y_axis), *(part for curve in curves for part in _curve(curve, x_axis, y_axis)), *_cross()]
    )
    note = " · ".join(filter(None, [unit, "logarithmic" if y_axis.is_log else ""]))
    return (
        f'<figure class="chart"><figcaption><b>{text(title)}</b>{f" <span>{text(note)}</span>" if note else ""}'
        f"{_legend(curves)}</figcaption>"
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">{body}</svg>'
        f'<output hidden></output></div><script type="application/json">{_numbers(curves, x_axis, y_axis)}</script>'
        "</figure>"
    )


def _x_axis(curves: Sequence[Curve]) -> Axis:
    steps = [x for curve in curves for x in (*(x for x, _ in curve.points), *curve.gaps)]
    low, high = min(steps), max(steps)
    if low == high:
        low, high = low - 1, high + 1
    return Axis(low, high, _LEFT, WIDTH - _RIGHT)


def _y_axis(curves: Sequence[Curve], may_be_log: bool, floor: float | None) -> Axis:
    values = sorted(
        value
        for curve in curves
        for (_, middle), error in zip(curve.points, [*curve.errors] or [0.0] * len(curve.points), strict=True)
        for value in ((middle - error, middle + error) if error else (middle,))
    ) or [0.0, 1.0]
    low, high = values[0], _without_outliers(values)
    if may_be_log and low > 0 and high / low > _LOG_RATIO:
        return Axis(low / 1.15, high * 1.15, HEIGHT - _BOTTOM, _TOP, is_log=True)
    low = min(low, floor) if floor is not None else low
    if high == low:
        margin = abs(high) * 0.1 or 1.0
    else:
        margin = max((high - low) * 0.06, _SMALLEST_SPAN * max(abs(low), abs(high)))
    return Axis(low if low == floor else low - margin, high + margin, HEIGHT - _BOTTOM, _TOP)


def _without_outliers(values: Sequence[float]) -> float:
    """Return the largest value, or less where a few spikes would press everything else flat."""
    if len(values) < 50:
        return values[-1]
    usual = values[int(0.98 * (len(values) - 1))]
    middle = values[len(values) // 2]
    return usual + (usual - middle) if values[-1] - middle > 8 * (usual - values[0]) > 0 else values[-1]


def _grid(x_axis: Axis, y_axis: Axis) -> Iterable[str]:
    values = y_axis.ticks(5)
    for value, label in zip(values, _labels(values), strict=True):
        y = y_axis.place(value)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>'
    base = HEIGHT - _BOTTOM
    yield f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{WIDTH - _RIGHT}" y2="{base}"/>'
    for value in x_axis.ticks(6):
        if value == int(value):
            yield f'<text x="{x_axis.place(value):.1f}" y="{base + 16}" text-anchor="middle">{short(value)}</text>'


def _curve(curve: Curve, x_axis: Axis, y_axis: Axis) -> Iterable[str]:
    color = f"c{curve.color % NUM_COLORS}"
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in curve.points]
    faint = " faint" if curve.smoothed else ""
    if len(places) > 1:
        yield _path(curve.points, curve.gaps, x_axis, y_axis, f"{color} {curve.style}{faint}")
    if curve.smoothed:
        yield _path(curve.smoothed, curve.gaps, x_axis, y_axis, color)
    if curve.style == "dots" or len(places) <= 12:
        yield "".join(f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    for (step, middle), error in zip(curve.points, curve.errors, strict=False):
        x, low, high = x_axis.place(step), y_axis.place(middle - error), y_axis.place(middle + error)
        yield f'<line class="{color} error" x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}"/>'
    for step, value in curve.points:
        if value > y_axis.high:
            x = x_axis.place(step)
            yield f'<path class="{color} mark" d="M{x - 4:.1f} {_TOP + 6}l4 -6l4 6z"/>'
    for step in curve.gaps[:200]:
        x, y = x_axis.place(step), _TOP + 4
        yield f'<path class="bad" d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6"><title>not finite</title></path>'


def _path(points: Sequence[Point], gaps: Sequence[float], x_axis: Axis, y_axis: Axis, classes: str) -> str:
    """Draw a line that is broken where a value was not finite."""
    parts, breaks = [], sorted(gaps)
    at, pen_down = 0, False
    for x, y in points:
        while at < len(breaks) and breaks[at] < x:
            at, pen_down = at + 1, False
        parts.append(f"{'L' if pen_down else 'M'}{x_axis.place(x):.1f} {y_axis.place(y):.1f}")
        pen_down = True
    return f'<path class="{classes}" d="{"".join(parts)}"/>'


def _cross() -> Iterable[str]:
    yield f'<line class="cross" x1="0" y1="{_TOP}" x2="0" y2="{HEIGHT - _BOTTOM}" visibility="hidden"/>'


def _legend(curves: Sequence[Curve]) -> str:
    if len(curves) < 2:
        return ""
    items = "".join(
        f'<li><i class="c{curve.color % NUM_COLORS} {curve.style}"></i>{text(curve.label)}</li>' for curve in curves
    )
    return f'<ul class="legend">{items}</ul>'


def _numbers(curves: Sequence[Curve], x_axis: Axis, y_axis: Axis) -> str:
    """Return what the pointer shows, as JSON that cannot end the element that it stands in."""
    value = {
        "x": [x_axis.low, x_axis.high, x_axis.start, x_axis.stop],
        "curves": [
            {
                "label": visible(curve.label),
                "color": curve.color % NUM_COLORS,
                "points": [[x, float(f"{y:.5g}")] for x, y in curve.points],
            }
            for curve in curves
        ],
    }
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


def short(value: float) -> str:
    """Write a number in few characters: `0`, `0.125`, `3.2k`, `2e-05`."""
    size = abs(value)
    if size == 0:
        return "0"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    return f"{value:.3g}".replace("e-0", "e-") if size < 1e-3 else f"{value:.4g}"


def _labels(values: Sequence[float]) -> list[str]:
    """Write the values of an axis, with as many digits as it takes to tell them apart."""
    labels = [short(value) for value in values]
    digits = 5
    while len(set(labels)) < len(labels) and digits < 9:
        labels, digits = [f"{value:.{digits}g}" for value in values], digits + 1
    return labels


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))
