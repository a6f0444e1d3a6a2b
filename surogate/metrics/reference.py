"""The tables in docs/guides/metrics.md, written from the table of metrics.

`python -m surogate.metrics.reference docs/guides/metrics.md` writes them anew; a test compares. A page says which table
it wants where, and everything outside the tables is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from surogate.metrics.catalogue import GROUPS
from surogate.metrics.table import MetricGroup

_TABLE = re.compile(r"(<!-- metrics: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return a page with the tables between `<!-- metrics: KEY -->` and `<!-- end -->` written anew."""
    groups = {group.key: group for group in GROUPS}
    return _TABLE.sub(lambda found: f"{found[1]}\n{metric_table(groups[found[2]])}\n\n{found[3]}", page)


def metric_table(group: MetricGroup) -> str:
    """Return the table of a group."""
    return "\n".join(_lines(group))


def _lines(group: MetricGroup) -> Iterator[str]:
    yield from ("| metric | unit | what it is | when to worry |", "| --- | --- | --- | --- |")
    for metric in group.metrics:
        yield f"| `{metric.name}` | {metric.unit} | {metric.meaning} | {metric.worry} |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
