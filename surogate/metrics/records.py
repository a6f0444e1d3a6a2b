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

_EXACT_DIGITS = 15
"""Of a whole number that a float holds exactly, whatever the digits are."""


def read_records(path: Path) -> list[Record]:
    """Return the records of a metrics.jsonl or samples.jsonl; a line that is none is skipped.

    A record is an object with a whole number as its step. A killed run leaves half a line, a full disk worse.
    """
    if not path.is_file():
        return []
    rows = map(parse_object, path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return [row for row in rows if row is not None and type(row.get("step")) is int]


def parse_object(line: str) -> Record | None:
    """Return the JSON object that a line holds, None where it holds none.

    A whole number that a float does not hold exactly becomes a float, an infinite one where it must.
    """
    try:
        value = json.loads(line, parse_int=_whole_number)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _EXACT_DIGITS else float(digits)


def to_line(record: Record) -> str:
    """Write a record as one line."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
    return json.dumps(finite) + "\n"
