from __future__ import annotations

import io
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from surogate.callbacks.progress import ProgressLine, describe_validation, duration, total_steps
from surogate.callbacks.window import StepSummary


def summary(**changes: float) -> StepSummary:
    values: dict[str, Any] = {
        "loss": 2.3451,
        "accuracy": 0.5,
        "grad_norm": 0.523,
        "learning_rate": 1.9e-4,
        "packing_efficiency": 0.9,
        "tokens_per_second": 1234.4,
        "supervised_tokens_per_second": 300.0,
        "num_steps": 1,
        "seconds": 1.55,
    }
    return StepSummary(**{**values, **changes})


def trainer(**changes: Any) -> Any:
    values = {
        "is_global_zero": True,
        "global_step": 10,
        "max_steps": 50,
        "max_epochs": -1,
        "datamodule": None,
        "sanity_checking": False,
        "callback_metrics": {},
    }
    return SimpleNamespace(**{**values, **changes})


def test_without_a_terminal_a_window_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine()
    progress.on_train_start(trainer(), None)  # type: ignore[arg-type]
    progress.on_window(trainer(), summary())
    assert capsys.readouterr().err == ("step 10/50  loss 2.345  lr 1.9e-04  grad 0.52  1,234 tok/s  eta 1m02s\n")


def test_where_nobody_knows_the_end_no_time_left_is_invented(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine()
    endless = trainer(max_steps=-1)
    progress.on_train_start(endless, None)  # type: ignore[arg-type]
    progress.on_window(endless, summary())
    line = capsys.readouterr().err
    assert line.startswith("step 10  loss") and "eta" not in line


def test_only_the_first_rank_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine()
    other = trainer(is_global_zero=False, callback_metrics={"val/loss": 1.0})
    progress.on_train_start(other, None)  # type: ignore[arg-type]
    progress.on_train_batch_start(other, None, None, 0)  # type: ignore[arg-type]
    progress.on_train_batch_end(other, None, None, None, 0)  # type: ignore[arg-type]
    progress.on_validation_end(other, None)  # type: ignore[arg-type]
    progress.on_train_end(other, None)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_stays_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    progress = ProgressLine()
    progress.on_train_start(trainer(), None)  # type: ignore[arg-type]
    progress.on_window(trainer(), summary())
    progress.on_validation_end(trainer(callback_metrics={"val/loss": 1.0}), None)  # type: ignore[arg-type]
    progress.on_exception(trainer(), None, KeyboardInterrupt())  # type: ignore[arg-type]
    shown = terminal.getvalue()
    assert "10/50" in shown and "loss 2.345" in shown and "eta 1m02s" in shown
    assert "val loss 1.000 ppl 2.72" in shown
    assert shown.rstrip().endswith("\x1b[?25h"), "the cursor is given back"


def test_the_total_is_max_steps_or_what_the_data_module_counts() -> None:
    data = SimpleNamespace(num_steps=lambda epochs: 7 * epochs)
    assert total_steps(trainer(max_steps=5, datamodule=data)) == 5
    assert total_steps(trainer(max_steps=-1, max_epochs=3, datamodule=data)) == 21
    assert total_steps(trainer(max_steps=-1, max_epochs=-1, datamodule=data)) is None
    assert total_steps(trainer(max_steps=-1, max_epochs=3)) is None


def test_each_validation_dataset_has_a_line_of_its_own() -> None:
    metrics = {"val/loss": 1.1, "val/b/c/loss": 1.2, "val/b/c/accuracy": 0.456, "val/a/loss": 1.0}
    lines = ["val a loss 1.000 ppl 2.72", "val b/c loss 1.200 ppl 3.32 acc 45.6 %"]
    assert describe_validation(metrics, before={}) == lines


def test_a_validation_before_training_stands_beside_the_later_ones() -> None:
    line = describe_validation({"val/a/loss": 1.0}, before={"val/a/loss": 2.0})[0]
    assert line == "val a loss 1.000 ppl 2.72 (7.39 before training)"
    assert describe_validation({"val/loss": 1.0}, {}) == ["val loss 1.000 ppl 2.72"]
    assert describe_validation({}, {}) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (12, "12s"), (59.7, "1m00s"), (62, "1m02s"), (3599, "59m59s"), (11_100, "3h05m")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_validation_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr("surogate.callbacks.progress.time.monotonic", lambda: next(clock))
    state: Any = trainer(num_val_batches=[3, 2000])
    line = ProgressLine()
    line.on_validation_start(state, None)  # type: ignore[arg-type]
    for batch_idx, loader in ((2, 0), (6, 1), (7, 1)):
        line.on_validation_batch_end(state, None, None, None, batch_idx, loader)  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == ["validating: 10 of 2,003 batches"]


def test_a_window_without_a_step_that_counted_says_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"loss": math.nan, "accuracy": math.nan, "grad_norm": math.nan}
    progress = ProgressLine()
    progress.on_train_start(trainer(), None)  # type: ignore[arg-type]
    progress.on_window(trainer(), summary(**nothing, skipped_steps=1))
    assert capsys.readouterr().err == "step 10/50  skipped  lr 1.9e-04  1,234 tok/s  eta 1m02s\n"
    progress.on_window(trainer(), summary(num_steps=2, skipped_steps=1))
    assert "loss 2.345" in capsys.readouterr().err
