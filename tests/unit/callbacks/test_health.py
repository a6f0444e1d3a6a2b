"""When StepHealth lowers the learning rate, and what it takes away at a start; runs are in tests/integration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from surogate.callbacks.health import StepHealth
from surogate.callbacks.rate_guard import COOLDOWN_STEPS, DIVERGING_STEPS
from surogate.callbacks.step_values import StepValues

LOSSES = [1.0] * 60 + [1.19] * 101 + [1.3] * 400
"""Rises by so little at a time that nothing is a spike, and stays."""


def reductions(health: StepHealth, start: int = 0, stop: int = len(LOSSES), skipped: range = range(0)) -> list[int]:
    """Return the steps at which the rate is lowered."""
    lowered: list[int] = []
    for step in range(start + 1, stop + 1):
        module: Any = SimpleNamespace(scale_learning_rate=lambda scale, step=step: lowered.append(step))
        health.on_step_values(None, module, StepValues(step, LOSSES[step - 1], 1.0, step in skipped))  # type: ignore[arg-type]
    return lowered


def test_after_a_reduction_the_steps_above_are_counted_anew_once_it_had_its_time(tmp_path: Path) -> None:
    first, *later = reductions(StepHealth(str(tmp_path), auto_lr_reduction=True))
    apart = COOLDOWN_STEPS + DIVERGING_STEPS
    assert later == [first + apart * number for number in range(1, len(later) + 1)] and len(later) >= 2


def test_a_run_that_goes_on_in_the_rest_lowers_the_rate_at_the_same_steps(tmp_path: Path) -> None:
    whole = reductions(StepHealth(str(tmp_path), auto_lr_reduction=True))
    for stop in (whole[0], whole[0] + 20, whole[0] + COOLDOWN_STEPS, whole[0] + COOLDOWN_STEPS + 20):
        before, after = (StepHealth(str(tmp_path), auto_lr_reduction=True) for _ in range(2))
        assert reductions(before, stop=stop) == whole[:1]
        after.load_state_dict(before.state_dict())
        assert reductions(after, start=stop) == whole[1:]


def test_steps_that_are_done_again_lose_their_files_and_those_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "health").mkdir()
    for name in ("step_2.json", "step_7.json", "step_7.rank_0.pt", "step_notes.txt", "step_.txt", "step_\u00b2.txt"):
        (tmp_path / "health" / name).touch()
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=5)
    StepHealth(str(tmp_path)).on_train_start(trainer, None)  # type: ignore[arg-type]
    left = {path.name for path in (tmp_path / "health").iterdir()}
    assert left == {"step_2.json", "step_notes.txt", "step_.txt", "step_\u00b2.txt"}
