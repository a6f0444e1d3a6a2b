"""The columns of a row, read as what they are meant to be.

What is not here: which column means what (formats.py). The one idea: a value of the wrong kind is refused with its
place, because everything can be turned into text, and a list must not be trained on as Python spells it.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Number
from typing import Any

from surogate.data.files import TextFile
from surogate.data.sources import SourceRow
from surogate.data.text_rows import parse_json
from surogate.errors import DataError

_LISTED_LEN = 400


def column(row: SourceRow, name: str, key: str) -> Any:
    """Return a column's value; `key` is the setting that named the column.

    Raises:
        DataError: the row has no such column.
    """
    if name not in row.values:
        raise DataError(f"{row.origin}: {key} is {name!r}, but the row has only the columns {listed(row.values)}.")
    return row.values[name]


def text_of(value: Any, row: SourceRow, name: str) -> str:
    """Read a value as text; nothing is the empty text.

    Raises:
        DataError: it is neither text nor a number.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, Number | TextFile) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{row.origin}: {name!r} must be text or a number, got {type(value).__name__} {value!r:.80}. "
        "Convert it to text first; messages with role and content are type: conversation."
    )


def list_of(value: Any, row: SourceRow, name: str) -> list[Any]:
    """Read a value as a list, which may also stand there as JSON text.

    Raises:
        DataError: it is none.
    """
    if isinstance(value, str):
        value = parse_json(value, f"{row.origin}: column {name!r} is text, but not JSON")
    if not isinstance(value, list):
        raise DataError(f"{row.origin}: column {name!r} must be a list, got {type(value).__name__}.")
    return value


def listed(names: Iterable[Any]) -> str:
    """Spell names for a message, on one line that can be read."""
    spelt = ", ".join(" ".join(str(name).split()) for name in names) or "(none)"
    return spelt if len(spelt) <= _LISTED_LEN else f"{spelt[:_LISTED_LEN]}..."
