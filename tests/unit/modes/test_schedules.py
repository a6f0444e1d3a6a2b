"""Learning-rate factors by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from surogate.config.parts import OptimSpec
from surogate.modes.schedules import learning_rate_factor


def factors(total: int, **spec: Any) -> list[float]:
    return [learning_rate_factor(OptimSpec(**spec), step, total) for step in range(total)]


def test_linear_falls_from_one_towards_the_final_fraction() -> None:
    assert factors(4, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert factors(4, schedule="linear", final_lr_fraction=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])


def test_cosine_is_halfway_in_the_middle_and_reaches_the_floor() -> None:
    values = factors(8, schedule="cosine", final_lr_fraction=0.1)
    assert values[0] == 1 and values[4] == pytest.approx(0.55)
    assert values[7] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate_factor(OptimSpec(schedule="cosine", final_lr_fraction=0.1), 8, 8) == pytest.approx(0.1)


def test_constant_stays() -> None:
    assert factors(3, schedule="constant") == [1, 1, 1]


def test_wsd_stays_and_falls_over_the_cooldown() -> None:
    assert factors(6, schedule="wsd", cooldown_steps=3) == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])


def test_warmup_rises_without_a_step_at_zero_and_steps_win_over_the_ratio() -> None:
    rising = factors(8, schedule="constant", warmup_steps=3, warmup_ratio=0.9)
    assert rising == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert factors(8, schedule="constant", warmup_ratio=0.25)[:3] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
def test_no_factor_leaves_zero_to_one_even_past_the_end(schedule: str) -> None:
    spec = OptimSpec(schedule=schedule, warmup_ratio=0.1)  # type: ignore[arg-type]
    assert all(0 <= learning_rate_factor(spec, step, 20) <= 1 for step in range(25))
