"""Watchdog: says which rank a run is waiting for, and where each one stands in the code.

What is not here: what a rank is doing at any moment (modes/activity.py, set by the step and by the hooks below), and
the words that ranks leave for each other (heartbeats.py).

The one idea: a thread of each rank looks at the clock. It needs neither the main thread, which hangs, nor the other
ranks, which hang with it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
import time
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.callbacks.heartbeats import Heartbeat, HeartbeatFolder, who_waits
from surogate.errors import TrainingError
from surogate.modes.activity import Activity, Doing
from surogate.run_folder import RunFolder

log = logging.getLogger(__name__)

POLLS = 20
"""Looks at the clock before a standstill is called one."""

LONGEST_POLL_SECONDS = 30.0

MAX_REPORTS = 5


class Watchdog(pl.Callback):
    """Report a standstill, and end it where that is asked for.

    Args:
        folder: output_dir of the run.
        stall_seconds: for which a rank may do one thing: fetch a batch, compute a micro-batch, save.
        abort_seconds: after which the process ends itself, so that whoever started the run can start it again; 0 =
            never.
    """

    def __init__(self, folder: str, stall_seconds: float = 600.0, abort_seconds: float = 0.0) -> None:
        self._folder = RunFolder(folder).health_dir
        self.stall_seconds, self.abort_seconds = stall_seconds, abort_seconds
        self._activity = Activity()
        self._watch: _Watch | None = None

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._activity = pl_module.activity  # type: ignore[assignment]
        self._activity.now("preparing", trainer.global_step)
        self._watch = _Watch(self, self._activity, trainer.global_rank, trainer.world_size)
        self._watch.start()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._activity.now("fetching the next batch", trainer.global_step + 1)

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._activity.now("validating")

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._activity.now("saving a checkpoint")

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._activity.now("ending the run")

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None


class _Watch(threading.Thread):
    """The thread of a rank.

    Args:
        settings: the limits, and where to write.
        activity: what the rank is doing.
        rank: global.
        world_size: ranks of the run.
    """

    def __init__(self, settings: Watchdog, activity: Activity, rank: int, world_size: int) -> None:
        super().__init__(name="surogate-watchdog", daemon=True)
        self._settings, self._activity = settings, activity
        self._rank, self._world_size = rank, world_size
        self._heartbeats = HeartbeatFolder(settings._folder)
        self._poll_seconds = min(settings.stall_seconds / POLLS, LONGEST_POLL_SECONDS)
        self._ends = threading.Event()
        self._reported: Doing | None = None
        self._reports = 0
        self._host = socket.gethostname()

    def stop(self) -> None:
        """End the thread and take the heartbeat back."""
        self._ends.set()
        self.join()
        self._heartbeats.remove(self._rank)

    @override
    def run(self) -> None:
        while not self._ends.wait(self._poll_seconds):
            doing, now = self._activity.doing, time.time()
            if self._world_size > 1:
                self._leave_word(doing, now)
            stalled = now - doing.since
            if self._reported is not None and doing != self._reported:
                log.warning("Rank %d goes on.", self._rank)
                self._reported = None
            # Two looks later than the limit, so that the words of the other ranks are from after it, too.
            if self._reported is None and stalled > self._settings.stall_seconds + 2 * self._poll_seconds:
                self._reported = doing
                self._report(doing, now)
            if 0 < self._settings.abort_seconds < stalled:
                self._abort(doing, stalled)

    def _leave_word(self, doing: Doing, now: float) -> None:
        try:
            self._heartbeats.write(self._heartbeat(doing, now))
        except OSError as error:
            log.debug("The heartbeat of rank %d could not be written: %s", self._rank, error)

    def _heartbeat(self, doing: Doing, now: float) -> Heartbeat:
        return Heartbeat(
            rank=self._rank,
            host=self._host,
            process=os.getpid(),
            step=doing.step,
            phase=doing.phase,
            seconds=now - doing.since,
            written=now,
        )

    def _report(self, doing: Doing, now: float) -> None:
        self._reports += 1
        if self._reports > MAX_REPORTS:
            return
        stacks = self._dump_stacks()
        beats: list[Heartbeat | None] = [None]
        if self._world_size > 1:
            beats = self._heartbeats.read(self._world_size)
        beats[self._rank] = self._heartbeat(doing, now)
        silence = 3 * self._poll_seconds + 1.0
        speaks = next(beat.rank for beat in beats if beat is not None and now - beat.written <= silence)
        if speaks != self._rank:
            return  # one rank reports for all
        lines = [
            f"rank {rank}: no word from it" if beat is None else beat.describe(now) for rank, beat in enumerate(beats)
        ]
        log.error(
            "Nothing has moved for %.0f s at step %d. %s\n  %s\nWhere each rank stands in the code is in %s.",
            *(now - doing.since, doing.step, who_waits(beats, now, silence), "\n  ".join(lines), stacks),
        )

    def _dump_stacks(self) -> str:
        """Write the stacks of all threads of this process; return what the files of all ranks are called."""
        try:
            self._settings._folder.mkdir(parents=True, exist_ok=True)
            with (self._settings._folder / f"stacks_rank_{self._rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            log.debug("The stacks of rank %d could not be written: %s", self._rank, error)
        return str(self._settings._folder / "stacks_rank_*.txt")

    def _abort(self, doing: Doing, stalled: float) -> None:
        log.error(
            "error: rank %d ends itself: %s has taken %.0f s, and stall_abort_seconds is %g. The same command "
            "continues the run from its newest checkpoint.",
            *(self._rank, doing.phase, stalled, self._settings.abort_seconds),
        )
        logging.shutdown()
        os._exit(TrainingError.exit_code)  # the main thread does not listen any more
