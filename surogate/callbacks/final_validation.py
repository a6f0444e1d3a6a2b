"""FinalValidation: a run that has validation data measures its last step, also where the interval does not fall on it.

The one idea: Lightning asks right after a step whether to validate; on the last step the answer is yes.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override


class FinalValidation(pl.Callback):
    """Validate after the last step, also where eval_steps is more than the run's steps."""

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends_last_epoch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or ends_last_epoch:
            # The interval of this one check: as many batches as there have been.
            trainer.val_check_batch = trainer.fit_loop.total_batch_idx + 1
