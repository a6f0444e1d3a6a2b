"""RolloutMetrics and RolloutProgress: the numbers of a GRPO run, in files and on the screen.

The one idea: a step's numbers are means over the window of a log line, as those of the loss are; an evaluation is a
record of its own, under the step whose weights it measured. In the files what rollouts say has `rl/` in front, and
times stand with the other speeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.callbacks.metrics import MetricsWriter, peak_memory_gib
from surogate.callbacks.progress import ProgressLine
from surogate.callbacks.window import StepSummary


class RolloutWindow:
    """The rollout numbers of the steps since the last log line."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, metrics: dict[str, float]) -> None:
        """Add the numbers of a step."""
        for name, value in metrics.items():
            self._values[name].append(value)

    def close(self) -> dict[str, float]:
        """Return means (but of what is called max the largest, and of clocks the span) and begin the next window."""
        values = {name: _summary(name)(of) for name, of in self._values.items()}
        self._values.clear()
        return values


def _summary(name: str) -> Callable[[list[float]], float]:
    if name.endswith(("/max", "/max_len", "_ended")):
        return max
    return min if name.endswith("_began") else fmean


def _metrics_of(module: Any) -> dict[str, float]:
    """Return the rollout numbers of the step that a GrpoModule has just done."""
    metrics: dict[str, float] = module.step_metrics["rollouts"]
    return metrics


_OF_EVERY_RUN = {"train", "speed", "data", "memory", "health"}
"""Groups of metrics that mean the same in all modes."""


def recorded_name(name: str) -> str:
    """Return what a number of rollouts is called in metrics.jsonl."""
    group, _, rest = name.partition("/")
    if group == "time":
        return f"speed/{rest}_seconds"
    return name if group in _OF_EVERY_RUN else f"rl/{name}"


def _recorded(values: dict[str, float]) -> dict[str, float]:
    return {recorded_name(name): value for name, value in values.items()}


class RolloutMetrics(MetricsWriter):
    """Write one record every n optimizer steps and one per evaluation.

    Args:
        folder: output_dir of the run.
        every_n_steps: optimizer steps in a record.
    """

    def __init__(self, folder: str, every_n_steps: int = 1) -> None:
        super().__init__(folder, every_n_steps)
        self._rollouts = RolloutWindow()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The module evaluates in its on_train_start, which comes after those of callbacks.
        if trainer.is_global_zero:
            self._record_evaluations(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self._rollouts.add(_metrics_of(pl_module))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.is_global_zero:
            self._record_evaluations(trainer, pl_module)

    @override
    def on_window(self, trainer: pl.Trainer, summary: StepSummary) -> None:
        trained = {
            "train/loss": summary.loss,
            "train/grad_norm": summary.grad_norm,
            "train/learning_rate": summary.learning_rate,
            "health/skipped_steps": summary.skipped_steps,
            "speed/trained_tokens_per_second": summary.tokens_per_second,
            "data/packing_efficiency": summary.packing_efficiency,
            "memory/peak_gib": peak_memory_gib(),
        }
        self.record(trainer, {**_recorded(self._rollouts.close()), **trained})

    def _record_evaluations(self, trainer: pl.Trainer, module: Any) -> None:
        for result in module.evaluations:
            self.record(trainer, _recorded(result.metrics))


class RolloutProgress(ProgressLine):
    """Show step, reward, the numbers that tell whether the update is sound, and where the time goes.

    Args:
        every_n_steps: optimizer steps between two updates.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._rollouts = RolloutWindow()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self._rollouts.add(_metrics_of(pl_module))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._print_evaluations(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._print_evaluations(trainer, pl_module)

    def _print_evaluations(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            for result in module.evaluations:
                self._print(describe_evaluation(result.version, result.metrics))

    @override
    def describe(self, summary: StepSummary) -> str:
        return describe_rollouts(self._rollouts.close(), summary)


def describe_rollouts(values: dict[str, float], summary: StepSummary) -> str:
    """Write the numbers of a window on a line."""
    times = "  ".join(
        f"{name} {values[f'time/{key}']:.1f}s"
        for name, key in (("generate", "generate"), ("train", "train"), ("sync", "sync"))
    )
    norm = "skipped" if summary.is_skipped else f"norm {summary.grad_norm:.2f}"
    return (
        f"reward {values['reward/mean']:.3f} ±{values['reward/std']:.2f}  {_describe_update(values)}  "
        f"len {values['completion/mean_len']:.0f}  {norm}  {times}"
    )


def _describe_update(values: dict[str, float]) -> str:
    if "importance_ratio/mean" not in values:
        return "all rewards of each group alike: nothing to learn"
    clipped = values["clipped_fraction/low"] + values["clipped_fraction/high"]
    shown = f"  clipped {100 * clipped:.1f} %" if clipped else ""
    return (
        f"ratio {values['importance_ratio/mean']:.4f}  kl {values['generator_kl']:.1e}  "
        f"masked {100 * values['masked_fraction/any']:.1f} %{shown}  "
        f"entropy {values['entropy']:.2f}"
    )


def describe_evaluation(version: int, metrics: dict[str, float]) -> str:
    """Write an evaluation on a line."""
    names = [name.removesuffix("/failed") for name in metrics if name.endswith("/failed")]
    return f"evaluation after {version} steps: {', '.join(_describe_environment(name, metrics) for name in names)}"


def _describe_environment(prefix: str, metrics: dict[str, float]) -> str:
    name, failed = prefix.removeprefix("eval/"), metrics[f"{prefix}/failed"]
    if f"{prefix}/reward" not in metrics:
        return f"{name}: none of {failed:.0f} prompts could be answered and scored"
    left_out = f" ({failed:.0f} prompts left out)" if failed else ""
    return f"{name} {metrics[f'{prefix}/reward']:.3f} ±{metrics[f'{prefix}/standard_error']:.3f}{left_out}"
