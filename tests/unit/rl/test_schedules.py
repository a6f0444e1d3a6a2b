"""Temperature and noise of a step, against values worked out by hand."""

from __future__ import annotations

import pytest

from surogate.config.parts_grpo import NoiseSpec, SamplingSpec
from surogate.rl.noise import noise_sigma
from surogate.rl.temperature import scheduled_temperature


def temperatures(asked, **schedule):
    spec = SamplingSpec(temperature=9.0, temp_scheduler={"start": 1.0, "end": 0.6, "steps": 4, **schedule})
    return [scheduled_temperature(spec, step) for step in asked]


def test_without_a_schedule_the_temperature_stays():
    assert {scheduled_temperature(SamplingSpec(temperature=0.8), step) for step in (0, 5, 900)} == {0.8}


def test_a_line_goes_from_start_to_end_and_stays_there():
    assert temperatures(range(6)) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.6])
    assert temperatures(range(3), type="linear", start=0.5, end=1.5, steps=2) == pytest.approx([0.5, 1.0, 1.5])


def test_a_half_cosine_is_flat_at_both_ends():
    # (1 - cos(pi / 4)) / 2 = 0.146447 of the way after a quarter of the steps
    assert temperatures(range(6), type="cosine") == pytest.approx([1.0, 0.941421, 0.8, 0.658579, 0.6, 0.6], abs=1e-6)


def test_a_schedule_of_one_step_is_a_jump():
    assert temperatures(range(3), steps=1) == pytest.approx([1.0, 0.6, 0.6])


def sigmas(steps, max_steps, **values):
    return [noise_sigma(NoiseSpec(enabled=True, **values), step, max_steps) for step in steps]


def test_noise_that_is_off_is_none():
    assert {noise_sigma(NoiseSpec(), step, 10) for step in range(12)} == {0.0}


def test_the_first_stage_has_no_noise_and_then_it_decays_by_a_factor():
    # equation 8 with K = 3 noisy stages: 0.05 (0.0005 / 0.05)^((k - 1) / 2)
    stages = [0.0, 5e-2, 5e-3, 5e-4]
    expected = [stages[step // 2] for step in range(8)]
    assert sigmas(range(8), 8, sigma_start=5e-2, sigma_end=5e-4, num_stages=4) == pytest.approx(expected)


def test_steps_that_do_not_divide_by_the_stages_still_pass_all_of_them():
    values = sigmas(range(10), 10, sigma_start=8.0, sigma_end=2.0, num_stages=4)
    assert values == pytest.approx([0, 0, 0, 8, 8, 4, 4, 4, 2, 2])


def test_after_the_last_step_and_in_runs_shorter_than_the_stages_noise_is_defined():
    assert sigmas([10, 11, 99], 10, num_stages=5) == pytest.approx([5e-4] * 3)
    assert sigmas(range(3), 2, sigma_start=8.0, sigma_end=2.0, num_stages=4) == pytest.approx([0, 4, 2])


def test_of_two_stages_the_second_has_the_noise_of_the_start():
    assert sigmas(range(4), 4, num_stages=2) == pytest.approx([0, 0, 5e-2, 5e-2])
