"""When a loss or a gradient norm is out of line with those before it, and when a loss keeps rising.

What is not here: what follows (health.py, early_stop.py).

The one idea: **medians, not means.** A spike must not move the measure that the next one is held against, so a value is
compared with the median of the last WINDOW, in units of their median absolute deviation (MAD). 1.4826 MAD is one
standard deviation where values are normally distributed (Rousseeuw and Croux, 1993).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WINDOW = 100
"""Values that a new one is compared with."""

FEWEST = 20
"""Values below which nothing is called a spike."""

_LEAST_SCALE = 0.01
"""Of the median; values that hardly differ would otherwise make a spike of a breath."""


@dataclass(frozen=True, slots=True)
class SpikeLimits:
    """What makes a value a spike; both must be reached.

    Attributes:
        what: is measured, for messages.
        z: robust standard deviations above the median.
        ratio: times the median.
    """

    what: str
    z: float
    ratio: float


LOSS_LIMITS = SpikeLimits("loss", z=6.0, ratio=1.2)
GRADIENT_LIMITS = SpikeLimits("gradient norm", z=10.0, ratio=3.0)


@dataclass(frozen=True, slots=True)
class Spike:
    """A value that is out of line."""

    what: str
    value: float
    median: float
    z: float

    def __str__(self) -> str:
        return (
            f"the {self.what} {self.value:.4g} lies {self.z:.1f} robust standard deviations above the median "
            f"{self.median:.4g} of the last steps"
        )


class SpikeDetector:
    """Compares each value with those before it.

    Args:
        limits: what makes a spike.
        values: seen before, from a checkpoint.
    """

    def __init__(self, limits: SpikeLimits, values: Sequence[float] = ()) -> None:
        self._limits = limits
        self.values: deque[float] = deque(values, maxlen=WINDOW)

    def see(self, value: float) -> Spike | None:
        """Add a finite value, and return what it is if it is out of line."""
        spike = self._spike(value) if len(self.values) >= FEWEST else None
        self.values.append(value)
        return spike

    def _spike(self, value: float) -> Spike | None:
        middle = median(self.values)
        deviation = 1.4826 * median(abs(other - middle) for other in self.values)
        z = (value - middle) / max(deviation, _LEAST_SCALE * abs(middle), 1e-12)
        is_far = z >= self._limits.z and value >= self._limits.ratio * middle
        return Spike(self._limits.what, value, middle, z) if is_far else None


class DivergenceMeter:
    """Tells for how many steps the loss has been well above the best that it was.

    The loss of a moment is the median of the last SPAN steps; well above is RISE.

    Args:
        state: of a checkpoint.
    """

    SPAN = 50
    RISE = 1.2

    def __init__(self, state: dict[str, object] | None = None) -> None:
        self._values: deque[float] = deque(maxlen=self.SPAN)
        self.best: float | None = None
        self.steps_above = 0
        if state:
            self._values.extend(state["values"])  # type: ignore[arg-type]
            self.best, self.steps_above = state["best"], state["steps_above"]  # type: ignore[assignment]

    @property
    def level(self) -> float:
        """The loss of the moment."""
        return median(self._values)

    def see(self, loss: float) -> int:
        """Add a finite loss; return the steps for which it has been well above the best."""
        self._values.append(loss)
        if len(self._values) < self.SPAN:
            return 0
        self.best = self.level if self.best is None else min(self.best, self.level)
        self.steps_above = self.steps_above + 1 if self.level > self.RISE * self.best else 0
        return self.steps_above

    def restart(self) -> None:
        """Count from zero again; the best stays."""
        self.steps_above = 0

    def state(self) -> dict[str, object]:
        """Give plain values, for a checkpoint."""
        return {"values": list(self._values), "best": self.best, "steps_above": self.steps_above}
