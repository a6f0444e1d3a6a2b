from __future__ import annotations

import json
import re

import pytest

from surogate.report.curves import Curve
from surogate.report.drawing import HEIGHT, WIDTH, Axis, draw, short


def curve(*points: tuple[float, float], **changes: object) -> Curve:
    return Curve(**{"label": "loss", "points": points, **changes})  # type: ignore[arg-type]


def labels(figure: str, anchor: str = "end") -> list[str]:
    """What is written beside the y axis, or below the x axis."""
    return re.findall(rf'text-anchor="{anchor}">([^<]*)<', figure)


def coordinates(figure: str) -> list[tuple[float, float]]:
    """All corners of all lines."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", figure)]


def test_a_line_lies_within_the_picture_and_higher_values_higher_up():
    figure = draw([curve((0.0, 1.0), (50.0, 3.0), (100.0, 2.0))], title="t", unit="nats")
    (x0, y0), (x1, y1), (x2, y2) = coordinates(figure)
    assert 0 < x0 < x1 < x2 < WIDTH and 0 < y1 < y2 < y0 < HEIGHT
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)


def test_a_gap_breaks_the_line_and_is_marked():
    figure = draw([curve((1.0, 1.0), (2.0, 1.5), (4.0, 1.0), (5.0, 1.2), gaps=[3.0])], title="t", unit="")
    (path,) = re.findall(r'<path class="c0 line" d="([^"]*)"', figure)
    assert path.count("M") == 2 and path.count("L") == 2
    assert figure.count("not finite") == 1
    whole = draw([curve((1.0, 1.0), (2.0, 1.5), (4.0, 1.0))], title="t", unit="")
    assert "not finite" not in whole


@pytest.mark.parametrize(
    "curves",
    [
        [curve((7.0, 3.0))],
        [curve((7.0, 0.0))],
        [curve(gaps=[1.0, 2.0])],
        [curve((1.0, 2.0), (2.0, 2.0)), curve(gaps=[5.0])],
        [curve((1.0, 1e-300), (2.0, 1e300))],
        [curve((1.0, -1e-9), (2.0, 1e9))],
    ],
)
def test_a_picture_of_hardly_anything_is_a_picture(curves: list[Curve]):
    figure = draw(curves, title="t", unit="", may_be_log=True)
    assert "nan" not in figure.lower() and "inf" not in figure.lower()
    assert len(labels(figure)) >= 2


def test_values_that_span_much_get_a_logarithmic_axis_where_that_is_allowed():
    points = [(float(step), 10.0 ** (-step)) for step in range(5)]
    assert "logarithmic" in draw([curve(*points)], title="t", unit="", may_be_log=True)
    assert "logarithmic" not in draw([curve(*points)], title="t", unit="")
    assert "logarithmic" not in draw([curve((0.0, -1.0), *points)], title="t", unit="", may_be_log=True)


def test_labels_of_close_values_can_be_told_apart():
    figure = draw([curve((0.0, 1.0), (1.0, 1.00004))], title="t", unit="")
    found = labels(figure)
    assert len(found) == len(set(found)) >= 3


def test_one_spike_does_not_press_the_rest_flat_and_is_marked():
    points = [(float(step), 1.0 + (step % 7) / 10) for step in range(200)]
    points[100] = (100.0, 5000.0)
    figure = draw([curve(*points)], title="t", unit="")
    assert max(float(label) for label in labels(figure)) < 10
    assert figure.count("mark") == 1


def test_an_interval_is_drawn_around_its_point():
    figure = draw([curve((1.0, 0.5), (2.0, 0.6), errors=[0.1, 0.05], style="dots")], title="t", unit="")
    spans = [float(y1) - float(y2) for y1, y2 in re.findall(r'error"[^>]*y1="([\d.]+)"[^>]*y2="([\d.]+)"', figure)]
    assert len(spans) == 2 and spans[0] == pytest.approx(2 * spans[1], rel=0.05)


def test_the_pointer_gets_the_numbers_and_cannot_end_its_element():
    hostile = "</script><script>alert(1)</script>&"
    figure = draw([curve((1.0, 0.123456789), label=hostile)], title=hostile, unit=hostile)
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', figure)
    assert json.loads(text)["curves"][0] == {"label": hostile, "color": 0, "points": [[1.0, 0.12346]]}
    assert "alert(1)</" not in figure.replace(text, "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.125, "0.125"), (1234.5, "1234"), (32000, "32k"), (2.5e6, "2.5M"), (2e-5, "2e-5"), (-0.5, "-0.5")],
)
def test_a_number_is_short(value: float, shown: str):
    assert short(value) == shown


def test_an_axis_keeps_what_lies_outside_at_its_border():
    axis = Axis(0.0, 10.0, 100.0, 0.0)
    assert [axis.place(value) for value in (-5.0, 0.0, 5.0, 20.0)] == [100.0, 100.0, 50.0, 0.0]
