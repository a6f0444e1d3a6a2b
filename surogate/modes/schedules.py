"""Learning-rate schedules as factors of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from surogate.config.parts import OptimSpec


def warmup_len(spec: OptimSpec, total_steps: int) -> int:
    """Steps of linear warm-up; `warmup_steps` wins over `warmup_ratio`."""
    return spec.warmup_steps or round(spec.warmup_ratio * total_steps)


def learning_rate_factor(spec: OptimSpec, step: int, total_steps: int) -> float:
    """Factor of the peak learning rate used in optimizer step `step` (0-based).

    Warm-up rises linearly to 1 over its steps, the first one included. After it: linear and cosine fall to
    `final_lr_fraction` at the end; constant stays; wsd stays and falls linearly over the last `cooldown_steps`
    (arXiv:2404.06395). `cooldown_steps` of 0 means a tenth of all steps for wsd.
    """
    warmup = warmup_len(spec, total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    floor = spec.final_lr_fraction
    if spec.schedule == "constant":
        return 1.0
    if spec.schedule == "wsd":
        cooldown = spec.cooldown_steps or max(1, total_steps // 10)
        remaining = max(0, total_steps - step)
        return floor + (1 - floor) * min(1.0, remaining / cooldown)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if spec.schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (1 - floor) * (1 - progress)


def set_learning_rate(schedule: Any, peak: float, factor: Callable[[int], float]) -> None:
    """Let a schedule and its optimizer go on from the rate that the present settings give.

    Args:
        schedule: torch's LambdaLR.
        peak: rate that the factor multiplies.
        factor: of a step, counted from 0.
    """
    schedule.base_lrs = [peak] * len(schedule.base_lrs)
    for group in schedule.optimizer.param_groups:
        group["lr"] = peak * factor(schedule.last_epoch)
