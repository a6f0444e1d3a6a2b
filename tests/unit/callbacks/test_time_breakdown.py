from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surogate.callbacks import time_breakdown
from surogate.callbacks.time_breakdown import MEASURED_STEPS, WARMUP_STEPS, TimeBreakdown, describe
from surogate.modes.activity import Activity

PARTS = {"fetching the next batch": 1.0, "forward pass": 4.0, "backward pass": 8.0, "updating the weights": 2.0}
"""Seconds that a step spends in each."""


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time_breakdown.time, "perf_counter", lambda: self.now)


def run(clock: Clock, num_steps: int, slow_start: float = 100.0) -> None:
    """Do steps of two micro-batches, the first ones slow."""
    trainer: Any = SimpleNamespace(is_global_zero=True)
    module: Any = SimpleNamespace(activity=Activity(), device=torch.device("cpu"))
    callback = TimeBreakdown()
    for step in range(1, num_steps + 1):
        slow = slow_start if step <= WARMUP_STEPS else 1.0
        module.activity.now("fetching the next batch", step)
        clock.now += slow * PARTS["fetching the next batch"]
        for i in (1, 2):
            for part in ("forward pass", "backward pass"):
                module.activity.now(f"{part} of micro-batch {i} of 2")
                clock.now += slow * PARTS[part] / 2
        module.activity.now("updating the weights")
        clock.now += slow * PARTS["updating the weights"]
        callback.on_train_batch_end(trainer, module, None, None, step)
    callback.on_train_end(trainer, module)
    assert module.activity.listener is None


@pytest.mark.parametrize("more", [MEASURED_STEPS, MEASURED_STEPS + 5, 3])
def test_parts_are_those_of_the_steps_after_the_first_and_sum_up_to_the_whole(monkeypatch, caplog, more: int) -> None:
    with caplog.at_level(logging.INFO, logger=time_breakdown.__name__):
        run(Clock(monkeypatch), WARMUP_STEPS + more)
    (message,) = caplog.messages
    assert message.startswith(f"Time of a step, mean of {min(more, MEASURED_STEPS)}:")
    found = [(part, float(milliseconds)) for part, milliseconds in re.findall(r"(?m)^  (.+?)  +([\d.]+) ms", message)]
    assert found == [*((part, 1000 * of) for part, of in PARTS.items()), ("whole step", 15_000)]


def test_a_run_that_is_too_short_says_so(monkeypatch, caplog) -> None:
    with caplog.at_level(logging.INFO, logger=time_breakdown.__name__):
        run(Clock(monkeypatch), WARMUP_STEPS)
    assert "this run had no more" in caplog.text


def test_shares_are_of_the_whole() -> None:
    assert describe({"forward pass": 0.25, "backward pass": 0.75}, 10).splitlines() == [
        "Time of a step, mean of 10:",
        "  forward pass       250.0 ms   25.0%",
        "  backward pass      750.0 ms   75.0%",
        "  whole step        1000.0 ms  100.0%",
    ]
