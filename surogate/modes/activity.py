"""Activity: what a process is doing right now, for whoever watches over it from another thread.

The one idea: noting it is one assignment, so it may stand anywhere in a step.
"""

from __future__ import annotations

import time
from typing import NamedTuple


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


class Activity:
    """The present phase of a process."""

    def __init__(self) -> None:
        self.doing = Doing(0, "starting", time.time())

    def now(self, phase: str, step: int | None = None) -> None:
        """Note a new phase; of the same step, where none is named."""
        self.doing = Doing(self.doing.step if step is None else step, phase, time.time())
