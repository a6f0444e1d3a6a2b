from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch

from surogate.callbacks.window import StepWindow, perplexity


def step_metrics(**values: float) -> dict[str, Any]:
    defaults = {"loss": 2.0, "loss_tokens": 10, "tokens": 40, "accuracy": 0.5, "grad_norm": 1.0, "skipped": 0}
    return {**{name: torch.tensor(value) for name, value in (defaults | values).items()}, "learning_rate": 1e-4}


def window_of(*steps: dict[str, Any]) -> StepWindow:
    window = StepWindow()
    window.resume()
    for metrics in steps:
        window.add(metrics, packing_efficiency=0.5)
    return window


def test_loss_and_accuracy_are_means_over_tokens_not_over_steps() -> None:
    steps = (
        step_metrics(loss=1.0, loss_tokens=1, accuracy=1.0, grad_norm=2.0),
        step_metrics(loss=3.0, loss_tokens=3, accuracy=0.0, grad_norm=4.0),
    )
    summary = window_of(*steps).close()
    assert summary.loss == pytest.approx((1 * 1.0 + 3 * 3.0) / 4)
    assert summary.accuracy == pytest.approx(1 / 4)
    assert summary.grad_norm == pytest.approx(3.0)
    assert summary.perplexity == pytest.approx(math.exp(2.5))
    assert (summary.num_steps, summary.learning_rate, summary.packing_efficiency) == (2, 1e-4, 0.5)


def test_a_closed_window_leaves_nothing_to_the_next_one() -> None:
    window = window_of(step_metrics(loss=9.0), step_metrics(loss=9.0))
    window.close()
    window.add(step_metrics(loss=1.0), packing_efficiency=1.0)
    summary = window.close()
    assert (summary.loss, summary.num_steps, summary.packing_efficiency) == (1.0, 1, 1.0)


def test_the_clock_stands_still_while_it_is_paused() -> None:
    window = window_of(step_metrics(tokens=40, loss_tokens=10))
    time.sleep(0.02)
    window.pause()
    time.sleep(0.2)
    window.pause()
    window.resume()
    summary = window.close()
    assert 0.02 <= summary.seconds < 0.15
    assert summary.tokens_per_second == pytest.approx(40 / summary.seconds)
    assert summary.supervised_tokens_per_second == pytest.approx(10 / summary.seconds)


def test_a_window_begins_where_the_last_one_ended_so_no_time_is_lost() -> None:
    window = window_of(step_metrics())
    window.close()
    time.sleep(0.03)
    window.add(step_metrics(), packing_efficiency=1.0)
    assert window.close().seconds >= 0.03


def test_a_window_without_a_supervised_token_has_no_loss() -> None:
    assert math.isnan(window_of(step_metrics(loss=0.0, loss_tokens=0)).close().loss)


def test_a_loss_that_is_not_a_number_is_shown_as_such() -> None:
    assert math.isnan(window_of(step_metrics(), step_metrics(loss=math.nan)).close().loss)


def test_no_step_reads_a_value_before_the_window_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    window = window_of(step_metrics())
    reads: list[str] = []
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def spy(self: torch.Tensor, *args: Any, name: str = name, original: Any = original) -> Any:
            reads.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, spy)
    window.add(step_metrics(), packing_efficiency=1.0)
    assert reads == []
    window.close()
    assert reads == ["tolist"]


def test_perplexity_of_a_diverged_run_is_infinite_not_an_error() -> None:
    assert perplexity(1e4) == math.inf
