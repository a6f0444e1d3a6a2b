"""EarlyStop: ends a run that has stopped learning, where a resume would end it, too.

The one idea: the run ends after a step like any other, with a checkpoint and what a run leaves behind; the checkpoint
knows why, so the same command does not go on.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from surogate.callbacks.spikes import DivergenceMeter
from surogate.callbacks.step_values import StepValues, StepValuesCallback

_say = rank_zero_only(logging.getLogger(__name__).warning)

LEAST_GAIN = 0.001
"""Share by which a loss has to fall to count as lower."""

VALIDATIONS = 5
"""Validations in a row without a lower loss that end a run."""

DIVERGING_STEPS = 200
"""Steps with a training loss well above its best that end a run."""

PLATEAU_STEPS = 500
"""Steps whose mean training loss must be lower than that of as many before."""


class EarlyStop(StepValuesCallback):
    """Stop where validation does not improve, or the training loss diverges or stands still.

    The compute efficiency by which other trainers stop, loss saved per operation as a share of its peak, is not among
    the criteria: a loss always falls fastest at the start, so it would end every run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reason: str | None = None
        self._best = math.inf
        self._without_gain = 0
        self._divergence = DivergenceMeter()
        self._losses: deque[float] = deque(maxlen=2 * PLATEAU_STEPS)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.reason is not None:
            _say("The run was stopped early: %s. To go on, set early_stop: false.", self.reason)
            trainer.should_stop = True

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.reason is not None and not trainer.should_stop:
            _say("The run stops early, at step %d: %s.", trainer.global_step, self.reason)
            trainer.should_stop = True

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge a validation; what follows from it waits for the next step, which is saved as any other."""
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.sanity_checking or loss is None or self.reason is not None:
            return
        if float(loss) < (1 - LEAST_GAIN) * self._best:
            self._best, self._without_gain = float(loss), 0
            return
        self._without_gain += 1
        if self._without_gain >= VALIDATIONS:
            self.reason = f"the last {VALIDATIONS} validations brought no lower loss than {self._best:.4f}"

    @override
    def on_step_values(self, trainer: pl.Trainer, pl_module: pl.LightningModule, values: StepValues) -> None:
        if values.skipped or self.reason is not None:
            return
        self._losses.append(values.loss)
        if self._divergence.see(values.loss) >= DIVERGING_STEPS:
            self.reason = (
                f"the training loss, {self._divergence.level:.4f}, has been well above its best, "
                f"{self._divergence.best:.4f}, for {DIVERGING_STEPS} steps"
            )
        elif len(self._losses) == 2 * PLATEAU_STEPS:
            losses = list(self._losses)
            before, now = fmean(losses[:PLATEAU_STEPS]), fmean(losses[PLATEAU_STEPS:])
            if now > (1 - LEAST_GAIN) * before:
                self.reason = (
                    f"the mean training loss of the last {PLATEAU_STEPS} steps, {now:.4f}, is no lower than that of "
                    f"the {PLATEAU_STEPS} before, {before:.4f}"
                )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "reason": self.reason,
            "best": self._best,
            "without_gain": self._without_gain,
            "divergence": self._divergence.state(),
            "losses": list(self._losses),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.reason, self._best = state_dict["reason"], state_dict["best"]
        self._without_gain = state_dict["without_gain"]
        self._divergence = DivergenceMeter(state_dict["divergence"])
        self._losses.extend(state_dict["losses"])
