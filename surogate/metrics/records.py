"""metrics.jsonl: one record a line, as every part that writes or reads the file sees it.

The one idea: JSON knows neither NaN nor infinity, so a number that is not finite stands there as null. A name that a
record lacks was not measured; a name with null was, and it had no finite value.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Return the records of a metrics.jsonl; a last line that a killed run left unfinished is skipped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def to_line(record: Record) -> str:
    """Write a record as one line."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
    return json.dumps(finite) + "\n"
