"""RateGuard: when auto_lr_reduction lowers the learning rate, and by how much.

What is not here: what a spike is (spikes.py), and how a rate gets to the optimizer (modes/base.py).

The one idea: one spike is a row, several are a rate that is too high. The whole remaining schedule is then scaled, so
its shape stays, and the scale is part of the checkpoint.
"""

from __future__ import annotations

from typing import Any

FACTOR = 0.5
"""What a reduction multiplies the rest of the schedule by; a power of two, so that no rounding comes in."""

PATIENCE = 3
"""Spikes or skipped steps that make a reduction, if they fall within SPAN_STEPS."""

SPAN_STEPS = 100

DIVERGING_STEPS = 50
"""Steps of a loss well above its best that make a reduction, too."""

COOLDOWN_STEPS = 50
"""Steps after a reduction in which nothing counts, so that it can show its effect."""

MAX_REDUCTIONS = 5


class RateGuard:
    """Counts what speaks for a lower learning rate.

    Attributes:
        reductions: made so far.
    """

    def __init__(self) -> None:
        self.reductions = 0
        self._events: list[int] = []
        self._resumes_after = 0

    @property
    def scale(self) -> float:
        """What the schedule is multiplied by."""
        return float(FACTOR**self.reductions)

    def is_resting(self, step: int) -> bool:
        """Tell whether a step lies so soon after a reduction that it does not count."""
        return step <= self._resumes_after

    def see(self, step: int, is_event: bool, steps_above: int) -> str | None:
        """Take notice of a step.

        Args:
            step: its number.
            is_event: it was a spike or was skipped.
            steps_above: for how many steps the loss has been well above its best.

        Returns:
            Why the learning rate is to be lowered, None where it is not.
        """
        if self.is_resting(step) or self.reductions >= MAX_REDUCTIONS:
            return None
        self._events = [event for event in self._events if event > step - SPAN_STEPS] + [step] * is_event
        reason = None
        if len(self._events) >= PATIENCE:
            reason = f"{len(self._events)} spikes or skipped steps within {SPAN_STEPS} steps"
        elif steps_above >= DIVERGING_STEPS:
            reason = f"the loss has been well above its best for {steps_above} steps"
        if reason:
            self.reductions += 1
            self._events, self._resumes_after = [], step + COOLDOWN_STEPS
        return reason

    def state(self) -> dict[str, Any]:
        """Give plain values, for a checkpoint."""
        return {"reductions": self.reductions, "events": self._events, "resumes_after": self._resumes_after}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self.reductions, self._events = state["reductions"], list(state["events"])
        self._resumes_after = state["resumes_after"]
