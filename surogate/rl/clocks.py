"""Clocks for what goes on at the same time: how long anything was under way, and how fast tokens came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class ActivityClock:
    """How long at least one of several overlapping activities has been under way, in seconds."""

    def __init__(self) -> None:
        self._running = 0
        self._since = 0.0
        self._ended = 0.0
        self._taken = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block, once where blocks overlap."""
        if not self._running:
            self._since = time.perf_counter()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._ended += time.perf_counter() - self._since

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return self._ended + (time.perf_counter() - self._since if self._running else 0.0)

    def take(self) -> float:
        """Return the seconds since the last call."""
        before, self._taken = self._taken, self.total
        return self._taken - before


class SamplingClock(ActivityClock):
    """The clock of sampling, which is told of each answer.

    A rate counts the time between answers: what is being sampled when somebody asks has cost time and given nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_tokens = 0
        self._answered = self._answered_before = 0.0

    def answer(self, num_tokens: int) -> None:
        """Note tokens at the moment at which they come."""
        self._num_tokens += num_tokens
        self._answered = self.total

    def take_tokens(self) -> tuple[int, float]:
        """Return the tokens since the last call, and how many came in a second of sampling; 0 where none came."""
        num_tokens, self._num_tokens = self._num_tokens, 0
        before, self._answered_before = self._answered_before, self._answered
        return num_tokens, num_tokens / max(self._answered - before, 1e-9)
