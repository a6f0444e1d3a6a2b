"""Points of a curve: thinned to what a picture can hold, smoothed, cut where a number was not finite.

The one idea: thinning keeps the smallest and the largest value of each stretch, so that no spike gets lost among
thousands of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Point = tuple[float, float]
MAX_POINTS = 320
"""Of a curve in a picture."""
LARGEST = 1e300
"""Value of a picture: sums and spans of such values are finite, too."""
SMALLEST = 1e-300
"""Value of a picture that is not zero: a tenth of it can still be told from zero."""
MIN_SMOOTHED = 24
"""Values from which on a mean over neighbours says more than the values."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a picture.

    Attributes:
        label: in the legend and beside the pointer.
        points: step and value, finite, thinned.
        gaps: steps whose value was not finite.
        smoothed: the mean over neighbours, where it is shown too.
        color: number of the colour.
        style: `line`, `dots` for what is measured now and then, or `dashed`.
        errors: half a 95 % interval of each point, where it is known.
    """

    label: str
    points: Sequence[Point]
    gaps: Sequence[float] = ()
    smoothed: Sequence[Point] = ()
    color: int = 0
    style: Literal["line", "dots", "dashed"] = "line"
    errors: Sequence[float] = ()


def finite(series: Sequence[tuple[int, float | None]]) -> tuple[list[Point], list[float]]:
    """Split a series into its points, and the steps at which it had no finite value; extreme ones are drawn nearer."""
    points = [(float(step), drawable(value)) for step, value in series if value is not None and math.isfinite(value)]
    gaps = [float(step) for step, value in series if value is None or not math.isfinite(value)]
    return points, gaps


def drawable(value: float) -> float:
    """Return the nearest value that a picture can hold."""
    return 0.0 if abs(value) < SMALLEST else min(max(value, -LARGEST), LARGEST)


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Keep at most so many points: the smallest and the largest of each stretch, and both ends."""
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    for stretch in _stretches(len(points), most // 2 - 1):
        kept.add(min(stretch, key=lambda index: points[index][1]))
        kept.add(max(stretch, key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Return a mean over neighbours, about a twentieth of the curve wide, centred so that it does not lag.

    Returns:
        Nothing where there are too few points for it to say anything.
    """
    if len(points) < MIN_SMOOTHED:
        return []
    means = [
        (sum(points[i][0] for i in stretch) / len(stretch), sum(points[i][1] for i in stretch) / len(stretch))
        for stretch in _stretches(len(points), min(len(points), MAX_POINTS // 2))
    ]
    width = max(len(means) / 40, 1.0)
    reach = int(3 * width)
    kernel = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(-reach, reach + 1)]
    result = []
    for place, (step, _) in enumerate(means):
        near = [
            (weight, means[place + offset - reach][1])
            for offset, weight in enumerate(kernel)
            if 0 <= place + offset - reach < len(means)
        ]
        result.append((step, sum(weight * value for weight, value in near) / sum(weight for weight, _ in near)))
    return result


def _stretches(length: int, count: int) -> list[range]:
    """Cut so many numbers into consecutive stretches of about the same length."""
    edges = [round(place * length / count) for place in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(edges) if stop > start]
