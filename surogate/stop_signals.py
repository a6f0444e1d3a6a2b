"""The signals that end a run early, from the first moment of its process on. No torch.

What is not here: finishing a step and saving (callbacks/preemption.py). The one idea: outside of the steps there is
nothing to lose, so there a signal ends the run at once, with a word and an exit code; while steps are done it is noted.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from surogate.errors import Stopped
from surogate.ranks import is_first_process, is_launched_by_lightning

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What ends a run: Ctrl-C, a scheduler or an operator, and a batch system ahead of the time limit."""

MAX_IDLE_RESTARTS = 3
"""A job that was restarted so often and whose present start did no step goes round in circles."""

_REQUEUE_SECONDS = 60.0


class StopSignals:
    """The signals that were received, and whether one may end the run at once.

    Attributes:
        received: number of the signal that asked to stop; 0 = none.
        has_stepped: whether this start of the run has done a step.
        is_agreed: whether all ranks stop now, and have saved.
    """

    def __init__(self) -> None:
        self.received = 0
        self.has_stepped = self.is_agreed = False
        self._holds = self._has_requeued = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @property
    def is_listening(self) -> bool:
        """Whether the handlers are installed."""
        return bool(self._before)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen, unless somebody does already; afterwards the handlers are what they were.

        Raises:
            Stopped: a signal ended the run; a SLURM job that is to go on is back in the queue.
        """
        if self.is_listening:
            yield
            return
        self.__init__()  # type: ignore[misc]  # of a run before in the same process nothing is left
        self.listen()
        try:
            yield
        except Stopped as stopped:
            raise Stopped(self.requeue(stopped.signum)) from None
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def listen(self) -> None:
        """Install the handlers; again where somebody else has put theirs in the place. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

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
            if is_launched_by_lightning():  # which ends wordlessly where one of its processes does
                os.kill(os.getppid(), number)
            raise Stopped(number)
        if is_first_process():
            again = " Ctrl-C again stops at once." if number == signal.SIGINT else ""
            log.warning("%s: stopping after this step, with a checkpoint.%s", signal.Signals(number).name, again)

    def requeue(self, number: int, environ: Mapping[str, str] = os.environ) -> int:
        """Put a SLURM job back into the queue after SIGUSR1, from one process of it and once.

        Returns:
            The signal to end with: SIGTERM in place of SIGUSR1 where the job is not to go on by itself.
        """
        job = environ.get("SLURM_JOB_ID")
        if number != signal.SIGUSR1 or self._has_requeued or job is None or not is_first_process(environ):
            return number
        if environ.get("SUROGATE_REQUEUE") == "0":
            return signal.SIGTERM
        restarts = int(environ.get("SLURM_RESTART_COUNT", "0"))
        if not self.has_stepped and restarts >= MAX_IDLE_RESTARTS:
            log.warning(
                "Job %s has been restarted %d times and came to no step in this start, so it is not requeued again. "
                "Submit it with a longer time limit.",
                *(job, restarts),
            )
            return signal.SIGTERM
        self._has_requeued = True
        try:
            command = ["scontrol", "requeue", job]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_REQUEUE_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(getattr(error, "stderr", None) or error).strip()
            log.warning("Job %s could not be requeued (%s). Submit it again to continue.", job, reason)
        else:
            log.warning("Job %s is back in the queue.", job)
        return number


STOP_SIGNALS = StopSignals()
"""Those of this process."""
