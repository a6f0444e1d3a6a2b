"""All metrics together, and how a name that a run wrote is found among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from surogate.metrics.table import (
    DATA,
    GPU,
    HEALTH,
    MEMORY,
    PRECISION,
    SPEED,
    TRAIN,
    VALIDATION,
    Metric,
    MetricGroup,
)
from surogate.metrics.table_grpo import COMPLETIONS, REWARD, TIMES, UPDATE

GROUPS: tuple[MetricGroup, ...] = (
    *(TRAIN, VALIDATION, SPEED, DATA, MEMORY, GPU, HEALTH, PRECISION),
    *(REWARD, COMPLETIONS, UPDATE, TIMES),
)
"""In the order of the guide."""


def metrics() -> Iterator[Metric]:
    """Go through the table."""
    return (metric for group in GROUPS for metric in group.metrics)


def describe(name: str) -> Metric | None:
    """Return what the table says of a name; exact names before families, None where it has neither."""
    return _exact().get(name) or next((metric for pattern, metric in _families() if pattern.fullmatch(name)), None)


@cache
def _exact() -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics()}


@cache
def _families() -> list[tuple[re.Pattern[str], Metric]]:
    return [(_pattern(metric.name), metric) for metric in metrics() if "<" in metric.name]


def _pattern(name: str) -> re.Pattern[str]:
    """Return what `val/<dataset>/loss` stands for; a data set's name may have slashes of its own."""
    return re.compile(".+".join(map(re.escape, re.split(r"<\w+>", name))))
