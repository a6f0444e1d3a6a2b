"""Preemption: a run that is told to stop finishes its step, saves, and can be continued by the same command.

What is not here: how a checkpoint is saved (checkpoints.py), and the batch script that asks for a signal ahead of the
time limit (cli/submit.py).

The one idea: **a signal is noted at any moment and obeyed only between two steps**, when all ranks have agreed on it.
Outside of the steps there is nothing to lose, so there it ends the run at once. Lightning's own way saves inside the
signal handler, or broadcasts there, and both can hang.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from surogate.callbacks.checkpoints import StepCheckpoints
from surogate.errors import Stopped

log = logging.getLogger(__name__)

_say = rank_zero_only(log.warning)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What ends a run: Ctrl-C, a scheduler or an operator, and a batch system ahead of the time limit."""

WALL_TIME_MARGIN_SECONDS = 120.0
"""Time that is left for saving where the batch system tells when the job ends and sends no signal before."""

MAX_IDLE_RESTARTS = 3
"""A job that was restarted so often and whose present start did no step goes round in circles."""

_REQUEUE_SECONDS = 60.0


class StopSignals:
    """The signals that were received, and whether one may end the run at once.

    Attributes:
        received: number of the signal that asked to stop; 0 = none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._holds = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @property
    def is_listening(self) -> bool:
        """Whether the handlers are installed."""
        return bool(self._before)

    def listen(self) -> None:
        """Install the handlers; again where somebody else has put theirs in the place. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    def stop_listening(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def hold(self) -> None:
        """From now on note a signal instead of ending the run."""
        self._holds = True

    def release(self) -> None:
        """From now on a signal ends the run at once, as does one that was noted.

        Raises:
            Stopped: there was one.
        """
        self._holds = False
        if self.received:
            raise Stopped(self.received)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which its parent ends
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if number == signal.SIGINT and (self.received or not self._holds):
            raise KeyboardInterrupt
        if self.received:  # a scheduler may send one signal after another
            return
        self.received = number
        if not self._holds:
            raise Stopped(number)
        again = " Ctrl-C again stops at once." if number == signal.SIGINT else ""
        _say(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint.{again}")


class Preemption(pl.Callback):
    """Stop between two steps when a signal came or the job's time is nearly over; requeue a SLURM job.

    It stands behind StepCheckpoints, which saves. SIGUSR1, and the approaching end of the job, put a SLURM job back
    into the queue, once. SIGTERM does not: SLURM sends it when it requeues by itself, or when a user cancels.
    """

    def __init__(self) -> None:
        self._signals = StopSignals()
        self._longest_step = 0.0
        self._step_began = 0.0
        self._has_requeued = self._has_stepped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen from here on, in what goes before training and after it as well.

        Raises:
            Stopped: a signal ended the run, and a checkpoint of the last step is there where there was a step.
        """
        self._signals.listen()
        try:
            yield
        except Stopped as stopped:
            self._requeue(stopped.signum)  # where it came before the first step, or after the last
            raise
        finally:
            self._signals.stop_listening()

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
        self._has_stepped = True
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
            self._requeue(number)
        trainer.strategy.barrier()  # a rank that is gone may make the scheduler end the others
        raise Stopped(number)

    def _agreed(self, trainer: pl.Trainer) -> int:
        """Return the signal that any rank is to obey, the same on all ranks; 0 = none."""
        number = self._signals.received or (signal.SIGUSR1 if self._time_is_up() else 0)
        if trainer.world_size == 1:
            return int(number)
        tensor = torch.tensor(int(number), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(tensor, reduce_op="max"))

    def _time_is_up(self) -> bool:
        end = job_end(os.environ)
        return end is not None and time.time() > end - WALL_TIME_MARGIN_SECONDS - self._longest_step

    def _requeue(self, number: int) -> None:
        """Put the SLURM job back into the queue, from one process of it."""
        if number != signal.SIGUSR1 or self._has_requeued or os.environ.get("SLURM_PROCID", "0") != "0":
            return
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            return
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if not self._has_stepped and restarts >= MAX_IDLE_RESTARTS:
            log.warning(
                "Job %s has been restarted %d times and came to no step in this start, so it is not requeued again. "
                "Submit it with a longer time limit.",
                job,
                restarts,
            )
            return
        self._has_requeued = True
        command = ["scontrol", "requeue", job]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_REQUEUE_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(getattr(error, "stderr", None) or error).strip()
            log.warning("Job %s could not be requeued (%s). Submit it again to continue.", job, reason)
        else:
            log.warning("Job %s is back in the queue.", job)


def job_end(environ: Mapping[str, str]) -> float | None:
    """Return when SLURM ends the job, in seconds since the epoch; None where it does not say so."""
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdigit() and int(text) > 0 else None


def _finish_loggers(trainer: pl.Trainer, number: int) -> None:
    """Let Weights & Biases send what it has, and know that the run goes on; afterwards nothing may be left to do so."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.mark_preempting()
            logger.experiment.finish(exit_code=128 + number)
