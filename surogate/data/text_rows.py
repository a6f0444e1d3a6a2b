"""Row readers of text formats: JSON lines, JSON and CSV.

What is not here: tables (tabular.py) and the choice of a reader (sources.py). The one idea: a reader gives
plain values with their place in the file, one row at a time; what it cannot read it refuses with that place.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from surogate.data.files import DataFile, opened
from surogate.errors import DataError

Row = tuple[dict[str, Any], str]
"""Column name to value, and the row's place in its file."""

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_DEPTH = 100
"""Far deeper than data goes, and shallow enough for every template, which must walk it too."""


def read_jsonl(file: DataFile) -> Iterator[Row]:
    """Yield the rows of JSON lines; blank lines are passed over."""
    with opened(file) as stream:
        yield from _json_lines(stream, file.name)


def _json_lines(stream: IO[bytes], name: str) -> Iterator[Row]:
    for line_number, line in enumerate(stream, start=1):
        if line.strip():
            origin = f"{name}:{line_number}"
            try:
                text = line.decode("utf-8-sig" if line_number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{origin}: the line is not UTF-8 text ({error}). Convert the file first.") from error
            yield _object(parse_json(text, f"{origin}: broken JSON line"), origin), str(line_number)


def read_json(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a JSON document: those of a list, those of an object's only list, or the object itself.

    The document is read whole. Many a .json file holds JSON lines, and is read as such.
    """
    name = file.name
    with opened(file) as stream:
        content = stream.read()
        text = content.decode("utf-8-sig")
    if not text.strip():
        return
    try:
        document = parse_json(text, f"{name}: broken JSON")
    except DataError as error:
        cause = error.__cause__
        if not isinstance(cause, json.JSONDecodeError):
            raise
        if cause.msg == "Extra data":
            yield from _json_lines(io.BytesIO(content), name)
            return
        raise DataError(
            f"{name}:{cause.lineno}: broken JSON: {cause.msg.removesuffix(' at')} at column {cause.colno}."
        ) from cause
    rows = document if isinstance(document, list) else _rows_within(document) or [document]
    for number, values in enumerate(rows, start=1):
        yield _object(values, f"{name}:row {number}"), f"row {number}"


def parse_json(text: str, problem: str) -> Any:
    """Parse JSON of which every string can be encoded, as tokenizers need it.

    Args:
        text: the JSON.
        problem: where the text stands and what it is, the start of an error's sentence.

    Raises:
        DataError: it is broken, nests too deeply, or has half of a surrogate pair.
    """
    try:
        value = json.loads(text)
        if text.count("{") + text.count("[") > _MAX_DEPTH:
            _check_depth(value)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{problem}: {error.msg.removesuffix(' at')} at column {error.colno}.") from error
    except RecursionError as error:
        raise DataError(f"{problem}: it nests too deeply. Flatten it.") from error
    except UnicodeEncodeError as error:
        lone = error.object[error.start]
        raise DataError(f"{problem}: \\u{ord(lone):x} is half of a surrogate pair, no character.") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{problem}: {error}.") from error
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise RecursionError


def _rows_within(document: Any) -> list[Any] | None:
    """Give the rows of `{"data": [...]}`: an object's one list of objects, unless it is a conversation itself."""
    lists = [value for value in document.values() if isinstance(value, list)] if isinstance(document, dict) else []
    if len(lists) != 1 or not lists[0] or not all(isinstance(row, dict) for row in lists[0]):
        return None
    return None if any({"role", "from"} & row.keys() for row in lists[0]) else lists[0]


def _object(values: Any, origin: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(f"{origin}: a row must be a JSON object of columns, got {type(values).__name__}.")
    return values


def read_csv(file: DataFile) -> Iterator[Row]:
    """Yield the rows of comma-separated values under a header."""
    csv.field_size_limit(2**31 - 1)  # the default refuses fields over 128 KiB, shorter than many a document
    name = file.name
    with opened(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            columns = list(reader.fieldnames or [])
            if twice := [column for column in columns if columns.count(column) > 1]:
                raise DataError(f"{name}:1: the header names column {twice[0]!r:.80} twice.")
            for values in reader:
                if None in values or None in values.values():
                    raise DataError(
                        f"{name}:{reader.line_num}: the row has not the {len(columns)} fields of the header."
                    )
                yield values, str(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{name}:{reader.line_num + 1}: broken CSV: {error}.") from error
