"""The temperature of each step."""

from __future__ import annotations

import math

from surogate.config.parts_grpo import SamplingSpec


def scheduled_temperature(sampling: SamplingSpec, step: int) -> float:
    """Return the sampling temperature of an optimizer step.

    Args:
        sampling: with a temp_scheduler it goes from `start` to `end` over `steps`, in a line or a half cosine.
        step: counted from 0.
    """
    schedule = sampling.temp_scheduler
    if not schedule:
        return sampling.temperature
    start, end = float(schedule["start"]), float(schedule["end"])
    done = min(1.0, step / max(1, int(schedule["steps"])))
    if schedule.get("type", "linear") == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return start + (end - start) * done
