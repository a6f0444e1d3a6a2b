from __future__ import annotations

import math

from surogate.report.curves import MAX_POINTS, MIN_SMOOTHED, finite, smoothed, thinned


def test_values_that_are_not_finite_are_gaps():
    assert finite([(1, 2.0), (2, None), (3, math.inf), (4, 1.0)]) == ([(1.0, 2.0), (4.0, 1.0)], [2.0, 3.0])


def test_thinning_keeps_ends_spikes_and_order():
    points = [(float(step), math.sin(step / 50)) for step in range(9000)]
    points[4321], points[6543] = (4321.0, 99.0), (6543.0, -99.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {points[4321], points[6543]} <= set(kept) <= set(points)
    assert kept == sorted(kept)


def test_few_points_stay_as_they_are():
    points = [(1.0, 1.0), (2.0, 5.0)]
    assert thinned(points) == points and thinned([]) == []


def test_a_mean_over_neighbours_follows_a_line_and_flattens_noise():
    line = [(float(step), 3.0 * step) for step in range(1000)]
    inner = smoothed(line)[20:-20]
    assert max(abs(value - 3 * step) for step, value in inner) < 2  # of 3000: stretches differ by a step
    noise = [(float(step), (-1.0) ** step) for step in range(1000)]
    assert max(abs(value) for _, value in smoothed(noise)) < 0.2


def test_too_few_points_are_not_smoothed():
    assert smoothed([(float(step), 1.0) for step in range(MIN_SMOOTHED - 1)]) == []
    assert len(smoothed([(float(step), 1.0) for step in range(MIN_SMOOTHED)])) == MIN_SMOOTHED
