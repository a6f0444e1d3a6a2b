"""What counts as a spike, and when a loss diverges."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from surogate.callbacks.rate_guard import (
    COOLDOWN_STEPS,
    DIVERGING_STEPS,
    FACTOR,
    MAX_REDUCTIONS,
    PATIENCE,
    SPAN_STEPS,
    RateGuard,
)
from surogate.callbacks.spikes import (
    FEWEST,
    GRADIENT_LIMITS,
    LOSS_LIMITS,
    WINDOW,
    DivergenceMeter,
    SpikeDetector,
)


def noisy(count: int, middle: float = 2.0, sigma: float = 0.1, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(middle, sigma) for _ in range(count)]


def test_a_noisy_and_falling_loss_has_no_spike() -> None:
    detector = SpikeDetector(LOSS_LIMITS)
    losses = [noise + 6.0 * 0.99**step for step, noise in enumerate(noisy(2000))]
    assert [loss for loss in losses if detector.see(loss)] == []


def test_a_loss_out_of_line_is_a_spike_with_its_distance_in_robust_deviations() -> None:
    detector = SpikeDetector(LOSS_LIMITS)
    for loss in noisy(WINDOW):
        detector.see(loss)
    spike = detector.see(4.0)
    assert spike is not None and spike.z == pytest.approx((4.0 - 2.0) / 0.1, rel=0.25)
    assert "loss 4 lies" in str(spike) and "median 1.979" in str(spike)
    assert detector.see(2.1) is None  # the spike has not moved the measure
    assert detector.see(4.0) is not None


def test_a_lasting_new_level_is_no_spike_for_ever() -> None:
    detector = SpikeDetector(GRADIENT_LIMITS)
    for norm in noisy(WINDOW, 1.0, 0.05):
        detector.see(norm)
    spikes = [detector.see(norm) is not None for norm in noisy(WINDOW, 8.0, 0.4, seed=1)]
    assert all(spikes[:40]) and not any(spikes[60:])


def test_nothing_is_a_spike_before_there_is_something_to_compare_with() -> None:
    detector = SpikeDetector(LOSS_LIMITS)
    assert not any(detector.see(loss) for loss in [2.0] * (FEWEST - 1) + [9.0])


def test_equal_values_make_no_spike_of_a_breath() -> None:
    detector = SpikeDetector(LOSS_LIMITS)
    assert not any(detector.see(loss) for loss in [2.0] * 50 + [2.1])


def test_the_meter_counts_steps_above_the_best_and_goes_on_from_its_state() -> None:
    meter = DivergenceMeter()
    assert max(meter.see(loss) for loss in noisy(200)) == 0
    counts = [meter.see(loss) for loss in noisy(60, 3.0)]
    again = DivergenceMeter(meter.state())
    assert counts[-1] > 30 and again.see(3.0) == meter.see(3.0) == counts[-1] + 1
    assert [again.see(loss) for loss in noisy(60)][-1] == 0


def test_one_spike_lowers_nothing_and_several_within_the_span_do() -> None:
    guard = RateGuard()
    lone = [guard.see(step, step % SPAN_STEPS == 0, 0) for step in range(1, 5 * SPAN_STEPS)]
    assert not any(lone) and guard.scale == 1.0
    start = 10 * SPAN_STEPS
    reasons = [guard.see(start + step, True, 0) for step in range(PATIENCE)]
    assert reasons[:-1] == [None] * (PATIENCE - 1) and f"{PATIENCE} spikes" in str(reasons[-1])
    assert guard.scale == FACTOR


def test_a_reduction_is_given_time_and_their_number_is_limited() -> None:
    guard = RateGuard()
    steps = [step for step in range(1, 2000) if guard.see(step, True, 0)]
    assert len(steps) == MAX_REDUCTIONS and guard.scale == FACTOR**MAX_REDUCTIONS
    assert all(later - earlier == COOLDOWN_STEPS + PATIENCE for earlier, later in pairwise(steps))


def test_a_diverging_loss_lowers_the_rate_without_any_spike() -> None:
    guard = RateGuard()
    reasons = [guard.see(step, False, step) for step in range(1, DIVERGING_STEPS + 1)]
    assert not any(reasons[:-1]) and "above its best" in str(reasons[-1])


def test_a_guard_goes_on_from_its_state() -> None:
    guard, again = RateGuard(), RateGuard()
    for step in range(1, PATIENCE):
        guard.see(step, True, 0)
    again.load(guard.state())
    assert again.see(PATIENCE, True, 0) == guard.see(PATIENCE, True, 0) is not None
