"""ProgressLine: what a person watches while a run trains.

The one idea: a terminal gets one bar that stays in place; a log file gets one plain line per window.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from typing_extensions import override

from surogate.callbacks.window import StepSummary, WindowCallback, perplexity, validation_metrics

_record = logging.getLogger("surogate.printed").info  # for a log file; see log_file.py

SECONDS_OF_SILENCE = 10.0
"""After which a long validation says how far it is."""


class ProgressLine(WindowCallback):
    """Show step, loss, learning rate, gradient norm, tokens per second and time left on stderr.

    Args:
        every_n_steps: optimizer steps between two updates.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._num_steps: int | None = None
        self._steps_seen = 0
        self._seconds_seen = 0.0
        self._before_training: dict[str, float] = {}
        self._last_word = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._num_steps = total_steps(trainer)
        if sys.stderr.isatty():
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[line]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=self._num_steps, completed=trainer.global_step, line="")
            self._bar.start()

    @override
    def on_window(self, trainer: pl.Trainer, summary: StepSummary) -> None:
        self._steps_seen += summary.num_steps
        self._seconds_seen += summary.seconds
        step = trainer.global_step
        line = self.describe(summary)
        if self._num_steps is not None:
            left = max(self._num_steps - step, 0)
            line += f"  eta {duration(left * self._seconds_seen / self._steps_seen)}"
        total = f"/{self._num_steps}" if self._num_steps is not None else ""
        if self._bar:
            self._bar.update(self._task, completed=step, line=line)
            _record(f"step {step}{total}  {line}")
        else:
            self._print(f"step {step}{total}  {line}")

    def describe(self, summary: StepSummary) -> str:
        """Write a window on one line."""
        return describe(summary)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._last_word = time.monotonic()

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.is_global_zero or time.monotonic() - self._last_word < SECONDS_OF_SILENCE:
            return
        self._last_word = time.monotonic()
        totals = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        done = int(sum(totals[:dataloader_idx])) + batch_idx + 1
        self._print(f"validating: {done:,} of {int(sum(totals)):,} batches")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = validation_metrics(trainer)
        if trainer.sanity_checking:
            self._before_training = metrics
        for line in describe_validation(metrics, {} if trainer.sanity_checking else self._before_training):
            self._print(line)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._stop()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _print(self, line: str) -> None:
        _record(line)
        if self._bar:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def total_steps(trainer: pl.Trainer) -> int | None:
    """Return the optimizer steps of the whole run, None where nobody knows."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    counts = hasattr(data, "num_steps") and (trainer.max_epochs or 0) > 0
    return int(data.num_steps(trainer.max_epochs)) if counts else None


def describe(summary: StepSummary) -> str:
    """Write a window as `loss 2.345  lr 1.9e-04  grad 0.52  1,234 tok/s`, or `skipped  lr 1.9e-04  1,234 tok/s`."""
    if summary.is_skipped:  # loss and gradient of the step stand in what StepHealth says; one of them may be finite
        return f"skipped  lr {summary.learning_rate:.1e}  {summary.tokens_per_second:,.0f} tok/s"
    return (
        f"loss {summary.loss:.3f}  lr {summary.learning_rate:.1e}  grad {summary.grad_norm:.2f}  "
        f"{summary.tokens_per_second:,.0f} tok/s"
    )


def describe_validation(metrics: dict[str, float], before: dict[str, float]) -> list[str]:
    """Write one line per dataset: `val factbook loss 1.23 ppl 3.4 (7.8 before training) acc 45.6 %`.

    Args:
        metrics: of the validation.
        before: of the one before the first step, where there was one.
    """
    names = [name.removeprefix("val/").removesuffix("/loss") for name in metrics if name.endswith("/loss")]
    lines = []
    for name in sorted(name for name in names if name != "loss") or ["loss"]:
        prefix = "val" if name == "loss" else f"val/{name}"
        if f"{prefix}/loss" not in metrics:
            continue
        loss = metrics[f"{prefix}/loss"]
        line = f"{prefix.replace('/', ' ', 1)} loss {loss:.3f} ppl {perplexity(loss):.2f}"
        if f"{prefix}/loss" in before:
            line += f" ({perplexity(before[f'{prefix}/loss']):.2f} before training)"
        accuracy = metrics.get(f"{prefix}/accuracy")
        lines.append(line if accuracy is None else f"{line} acc {100 * accuracy:.1f} %")
    return lines


def duration(seconds: float) -> str:
    """Write seconds as `12s`, `1m02s` or `3h05m`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h{minutes % 60:02}m"
