"""StopAfter: a run that ends after a given step, saved, as if it had been told to stop there."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.callbacks import StepCheckpoints
from surogate.errors import Stopped


class StopAfter(pl.Callback):
    """Save and leave after a step, as callbacks.Preemption does on a signal; it stands behind StepCheckpoints.

    Args:
        step: the last optimizer step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step < self.step:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCheckpoints):
                callback.save_now(trainer)
        trainer.strategy.barrier()
        raise Stopped(signal.SIGTERM)
