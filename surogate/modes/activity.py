"""Activity: what a process is doing right now, for whoever watches over it from another thread.

The one idea: noting it is one assignment, so it may stand anywhere in a step.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple

_OF_A_PASS = re.compile(r"(.+) of micro-batch (\d+) of \d+")


class Doing(NamedTuple):
    """A moment of a run.

    Attributes:
        step: the optimizer step that it belongs to, counted from 1; 0 = before the first.
        phase: what is done, as a participle: `reading data`.
        since: seconds since the epoch.
    """

    step: int
    phase: str
    since: float


def split_phase(phase: str) -> tuple[str, int]:
    """Return a phase without the number of its micro-batch, and that number; 0 where it has none."""
    found = _OF_A_PASS.fullmatch(phase)
    return (found[1], int(found[2])) if found else (phase, 0)


class Activity:
    """The present phase of a process.

    Attributes:
        listener: called, where there is one, with each phase that begins.
    """

    def __init__(self) -> None:
        self.doing = Doing(0, "starting", time.time())
        self.listener: Callable[[str], None] | None = None

    def now(self, phase: str, step: int | None = None) -> None:
        """Note a new phase; of the same step, where none is named."""
        if self.listener is not None:
            self.listener(phase)
        self.doing = Doing(self.doing.step if step is None else step, phase, time.time())
