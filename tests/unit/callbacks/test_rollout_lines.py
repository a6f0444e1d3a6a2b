"""Lines about rollouts for a terminal."""

from __future__ import annotations

from surogate.callbacks.rollout_metrics import describe_evaluation


def test_an_evaluation_names_each_environment_also_one_in_which_nothing_was_scored():
    metrics = {
        "eval/sums/reward": 0.5,
        "eval/sums/standard_error": 0.25,
        "eval/sums/failed": 0.0,
        "eval/broken/failed": 3.0,
        "eval/half/reward": 1.0,
        "eval/half/standard_error": 0.0,
        "eval/half/failed": 2.0,
    }
    assert describe_evaluation(5, metrics) == (
        "evaluation after 5 steps: sums 0.500 ±0.250, broken: none of 3 prompts could be answered and scored, "
        "half 1.000 ±0.000 (2 prompts left out)"
    )
