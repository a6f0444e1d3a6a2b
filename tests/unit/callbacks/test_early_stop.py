"""When a run ends early, and how many epochs a budget of tokens makes."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surogate.callbacks.early_stop import DIVERGING_STEPS, PLATEAU_STEPS, VALIDATIONS, EarlyStop
from surogate.callbacks.token_budget import TokenBudget
from surogate.modes.skipping import StepFacts


class Run:
    """A trainer and a module, as far as the callback looks at them."""

    def __init__(self, callback: EarlyStop) -> None:
        self.callback = callback
        self.trainer: Any = SimpleNamespace(
            global_step=0, should_stop=False, sanity_checking=False, callback_metrics={}
        )

    def step(self, loss: float) -> bool:
        self.trainer.global_step += 1
        module: Any = SimpleNamespace(facts=StepFacts())
        module.facts.judge(torch.tensor(loss), torch.tensor(1.0))
        self.callback.on_train_batch_end(self.trainer, module, None, None, 0)
        return bool(self.trainer.should_stop)

    def validate(self, loss: float) -> None:
        self.trainer.callback_metrics = {"val/loss": torch.tensor(loss)}
        self.callback.on_validation_end(self.trainer, None)  # type: ignore[arg-type]


def test_validations_without_a_lower_loss_stop_the_run_at_the_next_step() -> None:
    run = Run(EarlyStop())
    for loss in (3.0, 2.0, *[2.0] * (VALIDATIONS - 1)):
        run.validate(loss)
        assert not run.step(2.0)
    run.validate(1.9999)  # lower by less than a thousandth
    assert not run.trainer.should_stop and run.step(2.0)
    assert f"{VALIDATIONS} validations" in str(run.callback.reason)


def test_a_validation_with_a_lower_loss_starts_the_count_again() -> None:
    run = Run(EarlyStop())
    for number in range(4 * VALIDATIONS):
        run.validate(3.0 - number // (VALIDATIONS - 1) * 0.1)
        assert not run.step(2.0)


def test_a_loss_that_rises_for_good_stops_the_run() -> None:
    run = Run(EarlyStop())
    assert not any(run.step(2.0) for _ in range(100))
    stopped = [run.step(3.0) for _ in range(DIVERGING_STEPS + 60)]
    assert stopped.index(True) == pytest.approx(DIVERGING_STEPS + 25, abs=2)
    assert "above its best" in str(run.callback.reason)


def test_a_loss_that_stands_still_stops_the_run_and_one_that_falls_does_not() -> None:
    falling, still = Run(EarlyStop()), Run(EarlyStop())
    assert not any(falling.step(3.0 - 0.0005 * step) for step in range(3 * PLATEAU_STEPS))
    stopped = [still.step(2.0) for _ in range(2 * PLATEAU_STEPS)]
    assert stopped.index(True) == 2 * PLATEAU_STEPS - 1
    assert "is no lower" in str(still.callback.reason)


def test_a_stopped_run_that_is_started_again_stops_at_once() -> None:
    run = Run(EarlyStop())
    for _ in range(VALIDATIONS + 1):
        run.validate(2.0)
    again = Run(EarlyStop())
    again.callback.load_state_dict(run.callback.state_dict())
    again.callback.on_fit_start(again.trainer, None)  # type: ignore[arg-type]
    assert again.trainer.should_stop


def epochs(num_parameters: int, tokens: int) -> int:
    trainer: Any = SimpleNamespace(max_epochs=3, fit_loop=SimpleNamespace(max_epochs=3))
    data = SimpleNamespace(data_summary=lambda: {"train": [{"tokens": tokens / 2, "passes_per_epoch": 2.0}]})
    TokenBudget().set_epochs(trainer, num_parameters, data)
    return int(trainer.fit_loop.max_epochs)


def test_epochs_reach_twenty_tokens_a_parameter(caplog: pytest.LogCaptureFixture) -> None:
    assert epochs(num_parameters=1000, tokens=8000) == 3
    assert epochs(num_parameters=1000, tokens=1_000_000) == 1
    assert "many" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert epochs(num_parameters=1000, tokens=2000) == 10
    assert "10 epochs are many" in caplog.text
