"""Notices: a line a minute that says what is waited for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

NOTICE_SECONDS = 60.0
"""A wait is told after so long, and again."""
_ROUNDING = 0.9
"""Share of the interval after which two notices do not count as one: timers may be early."""


class Notices:
    """Tells of long waits; at most once in NOTICE_SECONDS, however many there are at once.

    Args:
        who: is waited for, as a sentence calls it.
        why: what is known about the reason; empty where nothing is.
    """

    def __init__(self, who: str, why: Callable[[], str] = lambda: "") -> None:
        self._who, self._why = who, why
        self._num_waiting = 0
        self._told = float("-inf")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Tell of the block if it lasts.

        Args:
            what: is waited for, as an infinitive such as `load version 3`.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        timers = deque[asyncio.TimerHandle](maxlen=1)

        def tell() -> None:
            timers.append(loop.call_later(NOTICE_SECONDS, tell))
            if loop.time() - self._told < _ROUNDING * NOTICE_SECONDS:
                return
            self._told = loop.time()
            others = f", and for {self._num_waiting - 1} other answers" if self._num_waiting > 1 else ""
            why = f": {reason}" if (reason := self._why()) else ""
            log.info("Waiting for %s to %s, for %.0f s now%s%s.", self._who, what, loop.time() - began, others, why)

        timers.append(loop.call_later(NOTICE_SECONDS, tell))
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1
            timers[0].cancel()
