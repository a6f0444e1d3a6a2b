"""What happened between two log lines: the window of steps that ProgressLine and MetricsWriter share.

How a window is shown or stored is theirs.

The one idea: **a step never waits for the device.** Sums stay on the device until a window closes, and then travel to
the host in one piece. The clock stands still while a validation or a save is under way.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """A closed window.

    Attributes:
        loss: mean over supervised tokens, in nats.
        accuracy: share of supervised tokens predicted right.
        grad_norm: mean over steps, before clipping.
        learning_rate: of the last step.
        packing_efficiency: mean over steps.
        tokens_per_second: of all ranks together, padding excluded.
        supervised_tokens_per_second: of these, the tokens that count in the loss.
        num_steps: optimizer steps in the window.
        seconds: training time of the window.
        skipped_steps: steps whose loss or gradient was not finite; the means above are over the others.
    """

    loss: float
    accuracy: float
    grad_norm: float
    learning_rate: float
    packing_efficiency: float
    tokens_per_second: float
    supervised_tokens_per_second: float
    num_steps: int
    seconds: float
    skipped_steps: int = 0

    @property
    def is_skipped(self) -> bool:
        """Whether all steps were skipped, so that there is no mean of anything."""
        return self.skipped_steps >= self.num_steps

    @property
    def step_seconds(self) -> float:
        """Mean time of an optimizer step."""
        return self.seconds / self.num_steps

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that overflows."""
        return perplexity(self.loss)


class StepTotals(Metric):
    """Sums of `step_metrics` on their device.

    torchmetrics' MeanMetric does not serve: checking for NaN waits for the device, and `nan_strategy="disable"`, which
    does not, drops the weights (torchmetrics 1.9).
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # step metrics are sums over all ranks already
        self.add_state("sums", torch.zeros(6), dist_reduce_fx=None)

    @override
    def update(self, metrics: dict[str, Any]) -> None:
        weight, tokens, skipped = metrics["loss_tokens"], metrics["tokens"], metrics["skipped"]
        counted = (metrics["loss"] * weight, metrics["accuracy"] * weight, weight, metrics["grad_norm"])
        loss, correct, loss_tokens, norm = (torch.where(skipped > 0, 0.0, value.float()) for value in counted)
        self.sums += torch.stack([loss, correct, loss_tokens, tokens.float(), norm, skipped.float()])

    @override
    def compute(self) -> list[float]:
        """Wait for the device; return sums: loss, correct and supervised tokens, tokens, gradient norm, skipped."""
        return list(self.sums.tolist())


class StepWindow:
    """Steps since the last log line."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._totals = StepTotals()
        self._packing_efficiency = 0.0
        self._learning_rate = 0.0
        self._seconds = 0.0
        self._running_since: float | None = None

    def resume(self) -> None:
        """Let the clock run, if it stands."""
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock once the device has done the steps that were handed to it."""
        if self._running_since is None:
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._seconds += time.perf_counter() - self._running_since
        self._running_since = None

    def add(self, metrics: dict[str, Any], packing_efficiency: float) -> None:
        """Add the `step_metrics` of one optimizer step."""
        self._totals.to(metrics["loss"].device).update(metrics)
        self._learning_rate = metrics["learning_rate"]
        self._packing_efficiency += packing_efficiency
        self.num_steps += 1

    def close(self) -> StepSummary:
        """Summarise the window and begin the next one."""
        assert self.num_steps > 0
        loss, correct, loss_tokens, tokens, grad_norm, skipped = self._totals.compute()
        num_counted = self.num_steps - int(skipped)
        now = time.perf_counter()
        if self._running_since is not None:
            self._seconds += now - self._running_since
            self._running_since = now
        seconds = max(self._seconds, 1e-9)
        summary = StepSummary(
            loss=loss / loss_tokens if loss_tokens else math.nan,
            accuracy=correct / loss_tokens if loss_tokens else math.nan,
            grad_norm=grad_norm / num_counted if num_counted else math.nan,
            learning_rate=self._learning_rate,
            packing_efficiency=self._packing_efficiency / self.num_steps,
            tokens_per_second=tokens / seconds,
            supervised_tokens_per_second=loss_tokens / seconds,
            num_steps=self.num_steps,
            seconds=seconds,
            skipped_steps=int(skipped),
        )
        self._totals.reset()
        self.num_steps = 0
        self._packing_efficiency = self._seconds = 0.0
        return summary


class WindowCallback(pl.Callback):
    """A callback of global rank 0 that is handed a summary every n optimizer steps, and of what is left at the end."""

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._window = StepWindow()

    def on_window(self, trainer: pl.Trainer, summary: StepSummary) -> None:
        """Take the summary of the steps up to trainer.global_step."""
        raise NotImplementedError

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self._window.resume()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        self._window.add(pl_module.step_metrics, batch.packing_efficiency)  # type: ignore[arg-type]
        if trainer.global_step % self.every_n_steps == 0:
            self.on_window(trainer, self._window.close())

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._window.pause()

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._window.pause()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._window.num_steps:
            self.on_window(trainer, self._window.close())


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return what the last validation logged, by its names: `val/<dataset>/loss`, `val/loss` and so on."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
