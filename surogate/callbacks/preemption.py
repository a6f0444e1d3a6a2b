"""Preemption: a run that is told to stop finishes its step, saves, and can be continued by the same command.

What is not here: how a checkpoint is saved (checkpoints.py), how signals are received (stop_signals.py), and the batch
script that asks for one ahead of the time limit (cli/submit.py).

The one idea: **a signal is noted at any moment and obeyed only between two steps**, when all ranks have agreed on it.
Outside of the steps there is nothing to lose, so there it ends the run at once. Lightning's own way saves inside the
signal handler, or broadcasts there, and both can hang.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from surogate.callbacks.checkpoints import StepCheckpoints
from surogate.errors import Stopped
from surogate.stop_signals import STOP_SIGNALS

log = logging.getLogger(__name__)

_say = rank_zero_only(log.warning)

WALL_TIME_MARGIN_SECONDS = 120.0
"""Time that is left for saving where the batch system tells when the job ends and nobody says how much is needed."""

_LOGGER_SECONDS = 60.0


class Preemption(pl.Callback):
    """Stop between two steps when a signal came or the job's time is nearly over; requeue a SLURM job.

    It stands behind StepCheckpoints, which saves. SIGUSR1, and the approaching end of the job, put a SLURM job back
    into the queue, once. SIGTERM does not: SLURM sends it when it requeues by itself, or when a user cancels.
    """

    def __init__(self) -> None:
        self._signals = STOP_SIGNALS
        self._longest_step = 0.0
        self._step_began = 0.0

    def listening(self) -> AbstractContextManager[None]:
        """Listen from here on, in what goes before training and after it as well; see StopSignals.listening."""
        return self._signals.listening()

    # ---- Lightning's hooks

    @override
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._signals.is_listening:
            self._signals.listen()  # Lightning has put its own handler for SIGTERM there since

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._signals.is_listening:
            self._signals.listen()
            self._signals.hold()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_began = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._signals.has_stepped = True
        self._longest_step = max(self._longest_step, time.monotonic() - self._step_began)
        self._obey(trainer)

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
        if trainer.training or trainer.sanity_checking or not self._signals.is_listening:
            return
        self._obey(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._signals.is_listening:
            self._obey(trainer)
            self._signals.release()

    # ---- stopping

    def _obey(self, trainer: pl.Trainer) -> None:
        """Save and leave where any rank was told to stop; called on every rank after the same batch."""
        number = self._agreed(trainer)
        if not number:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCheckpoints):
                callback.save_now(trainer)
        if trainer.is_global_zero:
            _say(f"Stopped after step {trainer.global_step}. The same command continues the run.")
            _finish_loggers(trainer, number)
            number = self._signals.requeue(number)
        trainer.strategy.barrier()  # a rank that is gone may make the scheduler end the others
        self._signals.is_agreed = True
        raise Stopped(number)

    def _agreed(self, trainer: pl.Trainer) -> int:
        """Return the signal that any rank is to obey, the same on all ranks; 0 = none."""
        number = self._signals.received or (signal.SIGUSR1 if self._time_is_up() else 0)
        if trainer.world_size == 1:
            return int(number)
        tensor = torch.tensor(int(number), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(tensor, reduce_op="max"))

    def _time_is_up(self) -> bool:
        end, margin = job_end(os.environ), os.environ.get("SUROGATE_SIGNAL_SECONDS")
        if end is None or margin == "0":
            return False
        needed = float(margin) if margin else WALL_TIME_MARGIN_SECONDS + self._longest_step
        return time.time() > end - needed


def job_end(environ: Mapping[str, str]) -> float | None:
    """Return when SLURM ends the job, in seconds since the epoch; None where it does not say so."""
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdigit() and int(text) > 0 else None


def _finish_loggers(trainer: pl.Trainer, number: int) -> None:
    """Let Weights & Biases send what it has, and know that the run goes on; not for longer than the job can wait."""

    def finish() -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.mark_preempting()
                logger.experiment.finish(exit_code=128 + number)

    thread = threading.Thread(target=finish, daemon=True)
    thread.start()
    thread.join(_LOGGER_SECONDS)
    if thread.is_alive():
        log.warning("Weights & Biases did not take everything within %g s; the run goes on without.", _LOGGER_SECONDS)
