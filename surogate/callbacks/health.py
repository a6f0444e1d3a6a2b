"""StepHealth: steps that are not finite or out of line are named with their rows, and a run that is broken ends.

What is not here: skipping itself (modes/skipping.py), what makes a spike (spikes.py), which rows a step had
(step_rows.py).

The one idea: every rank sees the same values, from the same reduction, so all of them count, save, slow down and give
up at the same step without asking each other.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from surogate.callbacks.rate_guard import FACTOR, RateGuard
from surogate.callbacks.spikes import GRADIENT_LIMITS, LOSS_LIMITS, DivergenceMeter, SpikeDetector
from surogate.callbacks.step_rows import Described, describe_step, name_rows, save_batch
from surogate.callbacks.step_values import StepValues, StepValuesCallback
from surogate.errors import TrainingError
from surogate.run_folder import RunFolder, write_json

_say = rank_zero_only(logging.getLogger(__name__).warning)

MAX_NAMED = 20
"""Skipped steps, and as many spikes, that are named and saved; later ones are only counted."""

TOTAL_FACTOR = 10
"""A run may skip this many times max_skipped_steps in all."""


class StepHealth(StepValuesCallback):
    """Name, save and count what is wrong with steps; end a run that skips too many.

    Args:
        folder: output_dir of the run.
        max_skipped_steps: steps in a row that may be skipped; ten times as many in the whole run.
        auto_lr_reduction: lower the learning rate after several spikes, see rate_guard.py.
        watch_loss: look for spikes of the loss, too; that of a policy says nothing.
    """

    def __init__(
        self, folder: str, max_skipped_steps: int = 5, auto_lr_reduction: bool = False, watch_loss: bool = True
    ) -> None:
        super().__init__()
        self._folder = RunFolder(folder).health_dir
        self.max_skipped_steps, self.watch_loss = max_skipped_steps, watch_loss
        self._guard = RateGuard() if auto_lr_reduction else None
        self._skipped_in_row = self._skipped = self._spikes = 0
        self._detectors = {"loss": SpikeDetector(LOSS_LIMITS), "grad_norm": SpikeDetector(GRADIENT_LIMITS)}
        self._divergence = DivergenceMeter()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._guard is not None:
            pl_module.learning_rate_scale = self._guard.scale  # type: ignore[assignment]
        if trainer.is_global_zero:
            for path in self._folder.glob("step_*.*"):  # of steps that are done again
                step = path.name.removeprefix("step_").partition(".")[0]
                if step.isdecimal() and int(step) > trainer.global_step:  # other names are somebody else's
                    path.unlink()

    @override
    def on_step_values(self, trainer: pl.Trainer, pl_module: pl.LightningModule, values: StepValues) -> None:
        steps_above = 0
        if values.skipped:
            is_event = True
            self._on_skipped(trainer, values)
        else:
            self._skipped_in_row = 0
            is_event = self._look_for_spikes(trainer, values)
            steps_above = self._divergence.see(values.loss) if self.watch_loss else 0
        if self._guard is not None and self._guard.is_resting(values.step):
            self._divergence.restart()
        if self._guard is not None and (reason := self._guard.see(values.step, is_event, steps_above)):
            module: Any = pl_module
            module.scale_learning_rate(self._guard.scale)
            _say(
                "Step %d: the learning rate is multiplied by %g from here on, as there have been %s "
                "(auto_lr_reduction); all reductions together make it %g of the schedule.",
                *(values.step, FACTOR, reason, self._guard.scale),
            )

    # ---- steps that are not finite

    def _on_skipped(self, trainer: pl.Trainer, values: StepValues) -> None:
        self._skipped_in_row += 1
        self._skipped += 1
        in_all = TOTAL_FACTOR * self.max_skipped_steps
        gives_up = self._skipped_in_row > self.max_skipped_steps or self._skipped > in_all
        if not gives_up and self._skipped > MAX_NAMED:
            return
        what = _what_is_not_finite(values)
        rows, file = self._save(trainer, values, what, with_tensors=True)
        if gives_up:
            raise TrainingError(self._why_it_ends(values, what, rows, file))
        quiet = " Further ones are only counted." if self._skipped == MAX_NAMED else ""
        _say(
            "Step %d was skipped, and no weight changed: %s. Its rows: %s. Batch and rows are kept in %s.%s",
            *(values.step, what, rows, file, quiet),
        )

    def _why_it_ends(self, values: StepValues, what: str, rows: str, file: Path) -> str:
        count, allowed = self._skipped, f"{TOTAL_FACTOR} x max_skipped_steps = {TOTAL_FACTOR * self.max_skipped_steps}"
        if self._skipped_in_row > self.max_skipped_steps:
            count, allowed = self._skipped_in_row, f"max_skipped_steps {self.max_skipped_steps} in a row"
        return (
            f"{count} steps had a loss or gradient that is not finite, the last one step {values.step}: {what}. "
            f"Allowed are {allowed}. Rows of that step: {rows}; all of them and the batch are kept in {file}. "
            "Where it is always the same rows, look at them and leave them out. Where it is all rows, the weights "
            "themselves have gone wrong or numbers overflow: start from a checkpoint before the loss rose, lower "
            "learning_rate, raise warmup_steps, or set model_dtype: bfloat16 in place of float16."
        )

    # ---- spikes

    def _look_for_spikes(self, trainer: pl.Trainer, values: StepValues) -> bool:
        found = [self._detectors["grad_norm"].see(values.grad_norm)]
        if self.watch_loss:
            found.insert(0, self._detectors["loss"].see(values.loss))
        spikes = [spike for spike in found if spike is not None]
        if not spikes:
            return False
        self._spikes += 1
        if self._spikes > MAX_NAMED:
            return True
        what = "; ".join(map(str, spikes))
        rows, file = self._save(trainer, values, what, with_tensors=False)
        quiet = " Further ones are not named." if self._spikes == MAX_NAMED else ""
        _say("Step %d: %s. Its rows: %s. All of them stand in %s.%s", *(values.step, what, rows, file, quiet))
        return True

    # ---- files

    def _save(self, trainer: pl.Trainer, values: StepValues, what: str, with_tensors: bool) -> tuple[str, Path]:
        """Write what a step was made of; return its rows for a message, and the file."""
        file = self._folder / f"step_{values.step}.json"
        tensors = f"step_{values.step}.rank_{trainer.global_rank}.pt"
        with_tensors = with_tensors and values.batch is not None
        data = getattr(trainer, "datamodule", None)
        mine = {
            "rank": trainer.global_rank,
            "tensors": tensors if with_tensors else None,
            "micro_batches": describe_step(values.batch, data, values.micro_losses),
        }
        ranks = gathered(trainer, mine)
        try:
            if with_tensors:
                save_batch(values.batch, self._folder / tensors)
            if trainer.is_global_zero:
                write_json(file, {"step": values.step, "what": what, **_as_json(values), "ranks": ranks})
        except OSError as error:
            _say("%s could not be written: %s.", file, error.strerror or error)
        per_rank: list[list[Described]] = [rank["micro_batches"] for rank in ranks]
        is_same_everywhere = hasattr(values.batch, "batch")  # the rollouts of a step are known to every rank
        return name_rows(per_rank[:1] if is_same_everywhere else per_rank), file

    # ---- checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "skipped_in_row": self._skipped_in_row,
            "skipped": self._skipped,
            "spikes": self._spikes,
            "values": {name: list(detector.values) for name, detector in self._detectors.items()},
            "divergence": self._divergence.state(),
            "guard": self._guard.state() if self._guard is not None else None,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._skipped_in_row, self._skipped = state_dict["skipped_in_row"], state_dict["skipped"]
        self._spikes = state_dict["spikes"]
        for name, detector in self._detectors.items():
            detector.values.extend(state_dict["values"][name])
        self._divergence = DivergenceMeter(state_dict["divergence"])
        if self._guard is not None and state_dict["guard"] is not None:
            self._guard.load(state_dict["guard"])


def gathered(trainer: pl.Trainer, value: Any) -> list[Any]:
    """Give every rank the plain values of all, in the order of ranks; all ranks must come here."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(values, value)
    return values


def _what_is_not_finite(values: StepValues) -> str:
    parts = {"the loss": values.loss, "the gradient norm": values.grad_norm}
    found = [f"{name} is {value}" for name, value in parts.items() if not math.isfinite(value)]
    return " and ".join(found)


def _as_json(values: StepValues) -> dict[str, Any]:
    numbers = {"loss": values.loss, "grad_norm": values.grad_norm}
    return {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
