"""A run in one go against the same run with a stop in the middle: `surogate verify resume`.

What is not here: how a run is started (launching.py) and what a checkpoint holds (states.py). The one idea: a machine
that does not repeat itself bit for bit cannot show that a resume does. So where the two runs differ, the undisturbed
one is run once more: only if that repeats, the resume is to blame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from surogate.config.flat import TrainConfig
from surogate.config.lower import to_lightning
from surogate.errors import CheckpointError, ConfigError
from surogate.metrics.records import read_records
from surogate.run_folder import RunFolder
from surogate.verification.states import StateDifference, compare_checkpoints

Nested = dict[str, Any]
Runner = Callable[[Nested, str], None]
"""Runs a nested configuration in a process of its own; the text says which run it is."""

VALIDATION_BATCHES = 2
"""Of each validation: enough to see whether it disturbs the training."""

NOISE = 4.0
"""A difference is the machine's own where it is at most so many times that of two undisturbed runs."""

Verdict = Literal["exact", "as close as the run is to itself", "broken"]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Loss and gradient norm of each step of a run."""

    values: dict[int, tuple[float | None, float | None]]

    @classmethod
    def of(cls, folder: Path) -> Steps:
        """Read those of a run's folder."""
        records = [record for record in read_records(RunFolder(folder).metrics_jsonl) if "train/loss" in record]
        return cls(values={r["step"]: (r["train/loss"], r["train/grad_norm"]) for r in records})

    def largest_difference(self, other: Steps) -> float:
        """Return the largest difference of a loss, relative to it; infinity where one has other steps."""
        if self.values.keys() != other.values.keys():
            return float("inf")
        pairs = [(self.values[step][0], other.values[step][0]) for step in self.values]
        return max((abs(a - b) / max(abs(a), 1e-12) for a, b in pairs if a is not None and b is not None), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side."""

    steps: float
    state: StateDifference
    is_exact: bool

    @classmethod
    def of(cls, one: Path, other: Path) -> Comparison:
        """Compare the metrics and the newest checkpoints of two folders."""
        a, b = Steps.of(one), Steps.of(other)
        newest = [_newest_checkpoint(folder) for folder in (one, other)]
        state = compare_checkpoints(*newest)
        is_exact = a == b and state.is_none and newest[0].name == newest[1].name
        return cls(steps=a.largest_difference(b), state=state, is_exact=is_exact)


@dataclass(frozen=True, kw_only=True)
class ResumeReport:
    """What came out.

    Attributes:
        stopped_after: the step in the middle.
        whole: steps of the run in one go.
        resumed: those of the run with a stop.
        comparison: of the two.
        control: of two runs in one go; None where it was not needed.
    """

    stopped_after: int
    whole: Steps
    resumed: Steps
    comparison: Comparison
    control: Comparison | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the resume is right."""
        if self.comparison.is_exact:
            return "exact"
        if self.control is None or self.control.is_exact:
            return "broken"
        own = self.control
        is_noise = self.comparison.steps <= NOISE * own.steps and not self.comparison.state.values
        return "as close as the run is to itself" if is_noise else "broken"


def verify_resume(config: TrainConfig, folder: Path, num_steps: int, run: Runner) -> ResumeReport:
    """Run 2N steps in one go, and N + N with a new process in between.

    Args:
        config: the user's.
        folder: for all that is written.
        num_steps: N.
        run: starts a run and waits for it.

    Raises:
        ConfigError: the run is over before it could be stopped.
        CheckpointError: a run failed, or left no checkpoint.
    """
    if 0 < config.max_steps < 2 * num_steps:
        num_steps = config.max_steps // 2
    if num_steps < 1:
        raise ConfigError(f"max_steps is {config.max_steps}, so there is no step to stop after and one to go on with.")
    whole, resumed, again = (folder / name for name in ("whole", "resumed", "again"))
    run(arranged(config, whole, num_steps, 2 * num_steps), f"{2 * num_steps} steps in one go")
    if len(Steps.of(whole).values) <= num_steps:
        raise ConfigError(
            f"The run is over after {len(Steps.of(whole).values)} steps. To stop it in the middle, give --steps half "
            "of that or less."
        )
    run(arranged(config, resumed, num_steps, num_steps), f"{num_steps} steps")
    run(arranged(config, resumed, num_steps, 2 * num_steps), f"the same command again, up to step {2 * num_steps}")
    report = ResumeReport(
        stopped_after=num_steps,
        whole=Steps.of(whole),
        resumed=Steps.of(resumed),
        comparison=Comparison.of(whole, resumed),
    )
    if report.comparison.is_exact:
        return report
    run(arranged(config, again, num_steps, 2 * num_steps), "in one go once more, since the two differ")
    return replace(report, control=Comparison.of(whole, again))


def arranged(config: TrainConfig, folder: Path, num_steps: int, last_step: int) -> Nested:
    """Return the nested configuration of a run that ends after last_step, its schedule being the user's own."""
    changes: dict[str, Any] = {
        "output_dir": str(folder),
        "checkpoint_dir": None,
        "resume_from_checkpoint": True,
        "report_to": [],
        "log_file": None,
        "save_steps": num_steps,
        "save_total_limit": 1,
        "logging_steps": 1,
    }
    nested = to_lightning(replace(config, **changes))
    trainer = nested["trainer"]
    if trainer["limit_val_batches"] != 0:
        trainer["limit_val_batches"] = VALIDATION_BATCHES
    stop = {"class_path": "surogate.verification.stop.StopAfter", "init_args": {"step": last_step}}
    trainer["callbacks"] = [*trainer["callbacks"], stop]
    return nested


def _newest_checkpoint(folder: Path) -> Path:
    newest = RunFolder(folder).latest_valid_checkpoint()
    if newest is None:
        raise CheckpointError(f"The run in {folder} left no checkpoint.")
    return newest
