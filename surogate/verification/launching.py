"""Runs in processes of their own, for a verification, with their output in a file.

The one idea: a run and the ranks that it starts are a process group, so a signal that ends the verification reaches all
of them, and the verification ends after them.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from surogate.errors import CheckpointError, Stopped

_log = logging.getLogger(__name__)
_GOOD = (0, 128 + signal.SIGTERM)
"""Exit codes of a run that was through, or stopped where it was told to."""
_SHOWN_LINES = 15
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_POLL_SECONDS = 0.1
_SECONDS_TO_END = 30.0
"""That a run has after a signal; what it would save is thrown away in any case."""


class Launcher:
    """Starts `surogate fit` on nested configurations, one after the other.

    Args:
        folder: for the configurations and the output of the runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, nested: dict[str, Any], title: str) -> None:
        """Run a configuration and wait for it.

        Raises:
            CheckpointError: it failed; with the end of what it said.
            Stopped: a signal ended the verification, and the run with it.
        """
        self._count += 1
        config, output = (self._folder / f"run-{self._count}.{suffix}" for suffix in ("yaml", "log"))
        config.write_text(yaml.safe_dump(nested, sort_keys=False), encoding="utf-8")
        _log.info("Running %s ...", title)
        start = time.monotonic()
        with output.open("w", encoding="utf-8") as file:
            code = run_group([sys.executable, "-m", "surogate", "fit", "--config", str(config)], file)
        if code not in _GOOD:
            said = "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:])
            raise CheckpointError(
                f"The run itself failed ({title}; exit code {code}), so nothing was compared:\n{said}"
            )
        _log.info("  done in %.0f seconds", time.monotonic() - start)


@contextmanager
def stops_on_signals() -> Iterator[None]:
    """Leave the block by Stopped on a signal that would end the process as it is."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    with _handled(_ENDING, stop):
        yield


def run_group(command: Sequence[str], output: IO[str], seconds_to_end: float = _SECONDS_TO_END) -> int:
    """Run a command as a process group of its own and wait for it.

    Args:
        command: program and arguments.
        output: for what it says.
        seconds_to_end: after which a signal that was passed on is followed by SIGKILL.

    Returns:
        Its exit code.

    Raises:
        Stopped: this process got a signal; the group got it too, and is gone.
    """
    received: list[int] = []
    with _handled((*_ENDING, signal.SIGINT), lambda number, _: received.append(number)):
        # A session, as a signal of the terminal is to reach the group once, from here.
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while not _is_over(child.pid) and not received:
                time.sleep(_POLL_SECONDS)
            if received:
                os.killpg(child.pid, received[0])
                end = time.monotonic() + seconds_to_end
                while not _is_over(child.pid) and time.monotonic() < end:
                    time.sleep(_POLL_SECONDS)
        finally:
            if received or not _is_over(child.pid):
                with suppress(ProcessLookupError):  # not waited for yet, so the number is still the group's
                    os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    if received:
        raise Stopped(received[0])
    return code


@contextmanager
def _handled(signals: Sequence[signal.Signals], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle signals in the block, but not those that are ignored, as under nohup."""
    before = {number: signal.getsignal(number) for number in signals}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _is_over(pid: int) -> bool:
    """Tell whether a child has ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
