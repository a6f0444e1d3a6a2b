"""What the data of GRPO does when a run ends: the orchestrator of a run that somebody will continue stays."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from surogate.errors import GeneratorError, Stopped
from surogate.modes import RolloutDataModule


def data_at(step: int) -> Any:
    """The data module of a run of five steps, whose feed notes how it is closed."""
    data: Any = RolloutDataModule()
    data.trainer = SimpleNamespace(global_step=step, max_steps=5)
    data.closed = []
    data._feed = SimpleNamespace(close=lambda is_over: data.closed.append(is_over))
    return data


@pytest.mark.parametrize(("step", "is_over"), [(5, True), (3, False)])
def test_a_run_is_over_when_it_has_done_its_steps(step: int, is_over: bool) -> None:
    data = data_at(step)
    data.teardown("fit")
    assert data.closed == [is_over]


@pytest.mark.parametrize(
    ("ending", "is_over"),
    [
        (KeyboardInterrupt(), True),
        (Stopped(signal.SIGINT), True),
        (Stopped(signal.SIGTERM), False),
        (Stopped(signal.SIGUSR1), False),
        (GeneratorError("no server is left"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_only_who_stops_a_run_by_hand_ends_the_orchestrator_before(ending: BaseException, is_over: bool) -> None:
    data = data_at(3)
    data.on_exception(ending)
    assert data.closed == [is_over]
