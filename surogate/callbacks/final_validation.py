"""FinalValidation: what a run would miss otherwise: the validation of its last step, and of one that it was stopped at.

The one idea: Lightning asks right after a step whether to validate; on the last step the answer is yes. A run that was
stopped between a checkpoint and the validation due there finds no record of it and measures first.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.callbacks.metrics import read_records
from surogate.run_folder import RunFolder


class FinalValidation(pl.Callback):
    """Validate after the last step, also where eval_steps is more than the run's steps; and where it was cut short."""

    def __init__(self) -> None:
        self._measured_step = 0

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measured_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _ends_training(trainer):
            # The interval of this one check: as many batches as there have been.
            trainer.val_check_batch = trainer.fit_loop.total_batch_idx + 1

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        interval = trainer.val_check_interval
        counts_steps = isinstance(interval, int) and trainer.check_val_every_n_epoch is None
        if counts_steps and trainer.global_step % interval == 0:
            self._measure_unless_recorded(trainer)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Where the run was stopped after its last step; on_train_start is not called for it any more.
        self._measure_unless_recorded(trainer)

    def _measure_unless_recorded(self, trainer: pl.Trainer) -> None:
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop.val_loop
        needed = None
        if trainer.is_global_zero and step > self._measured_step and trainer.limit_val_batches:
            records = read_records(RunFolder(trainer.default_root_dir).metrics_jsonl)
            needed = not any(record["step"] == step and any(map(_is_validation, record)) for record in records)
        if not trainer.strategy.broadcast(needed):
            return
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True


def _ends_training(trainer: pl.Trainer) -> bool:
    ends_last_epoch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
    return trainer.global_step == trainer.max_steps or ends_last_epoch


def _is_validation(name: str) -> bool:
    return name.startswith("val/")
