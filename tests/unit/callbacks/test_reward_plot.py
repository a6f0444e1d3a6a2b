from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from support.figures import labels

from surogate.callbacks.reward_plot import RewardPlot


def curve(num_steps: int, *environments: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{"step": step, "rl/reward/mean": step / 40} for step in range(1, num_steps + 1)]
    for step in (0, 20):
        for name in environments:
            prefix = f"rl/eval/{name}"
            records.append({"step": step, f"{prefix}/reward": 0.5, f"{prefix}/standard_error": 0.1})
    return records


def test_training_and_evaluations_are_drawn_with_their_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    RewardPlot(str(tmp_path)).draw(curve(40, "math"))
    axes = drawn[0].axes[0]
    assert labels(drawn[0]) == ["training (smoothed)", "evaluation: math"]
    assert axes.get_xlabel() == "optimizer step" and axes.get_ylabel() == "mean reward"
    low, high = axes.collections[0].get_segments()[1]
    assert tuple(low) == pytest.approx((20, 0.5 - 0.196)) and tuple(high) == pytest.approx((20, 0.5 + 0.196))
    assert axes.get_legend().get_title().get_text() == "95 % intervals"


def test_without_evaluations_nothing_is_said_of_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    RewardPlot(str(tmp_path)).draw(curve(4))
    assert labels(drawn[0]) == ["training"] and drawn[0].axes[0].get_legend().get_title().get_text() == ""


def test_an_evaluation_in_which_everything_failed_is_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [*curve(4), {"step": 0, "rl/eval/a/failed": 3.0}, {"step": 0, "rl/eval/b/reward": math.nan}]
    RewardPlot(str(tmp_path)).draw(records)
    assert labels(drawn[0]) == ["training"]


def test_without_any_reward_no_file_is_written(tmp_path: Path) -> None:
    RewardPlot(str(tmp_path)).draw([{"step": 1, "train/loss": 1.0}])
    assert not list(tmp_path.iterdir())
