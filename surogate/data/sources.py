"""Files, folders and hub data sets as rows of plain values.

What is not here: what the columns mean (formats.py). The one idea: every row knows where it came from, `file:line`, and
data is only ever parsed, never executed.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from surogate.config.parts import DatasetSpec
from surogate.data.tabular import read_arrow, read_parquet, read_zstd
from surogate.errors import DataError
from surogate.locations import resolve


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it stands in the file.

    Attributes:
        values: column name to value.
        origin: `file:line`, or `file:row N` where a file has no lines.
    """

    values: dict[str, Any]
    origin: str


Reader = Callable[[IO[bytes], Path], Iterator[tuple[dict[str, Any], str]]]
"""Gives the rows of a stream, each with its place in the file; the path is for messages."""


def open_rows(spec: DatasetSpec) -> Sequence[SourceRow]:
    """Read the rows of a data set, at most `samples` of them.

    Raises:
        DataError: nothing is there, a file is broken (with its line), or there is no row.
    """
    location = resolve(spec.path)
    if isinstance(location, str):
        rows = _read_hub(location, spec)
    elif location.is_dir():
        rows = _read_folder(location)
    else:
        rows = _read_file(location)
    held = list(islice(rows, spec.samples))
    if not held:
        raise DataError(f"{spec.path}: the data set is empty; it must hold at least one row.")
    return held


def _read_folder(folder: Path) -> Iterator[SourceRow]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _reader_and_opener(path)]
    if not files:
        raise DataError(f"{folder}: the folder holds no data file. Allowed are {_allowed()}.")
    for path in files:
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[SourceRow]:
    found = _reader_and_opener(path)
    if found is None:
        raise DataError(f"{path}: unknown file type. Allowed are {_allowed()}.")
    read, opener = found
    try:
        with opener(path) as stream:
            for values, place in read(stream, path):
                yield SourceRow(values, f"{path}:{place}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the file is not UTF-8 text ({error}). Convert it first.") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: the file cannot be read: {error}") from error


def _reader_and_opener(path: Path) -> tuple[Reader, Callable[[Path], IO[bytes]]] | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    opener = _OPENERS.get(suffixes[-1]) if suffixes else None
    if opener:
        suffixes.pop()
    reader = _READERS.get(suffixes[-1]) if suffixes else None
    return (reader, opener or (lambda path: path.open("rb"))) if reader else None


def _allowed() -> str:
    return f"{', '.join(_READERS)}, each also with {', '.join(_OPENERS)}"


def _text(stream: IO[bytes]) -> IO[str]:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _read_jsonl(stream: IO[bytes], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with _text(stream) as lines:
        for line_number, line in enumerate(lines, start=1):
            if line.strip():
                yield _object(_parse_line(line, f"{path}:{line_number}"), f"{path}:{line_number}"), str(line_number)


def _parse_line(line: str, origin: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{origin}: broken JSON line: {error.msg} at column {error.colno}.") from error


def _read_json(stream: IO[bytes], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    content = stream.read()
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _read_jsonl(io.BytesIO(content), path)  # many a .json file holds JSON lines
        return
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}.") from error
    for number, values in enumerate(rows, start=1):
        yield _object(values, f"{path}:row {number}"), f"row {number}"


def _object(values: Any, origin: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(f"{origin}: a row must be a JSON object of columns, got {type(values).__name__}.")
    return values


def _read_csv(stream: IO[bytes], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses fields over 128 KiB, shorter than many a document
    with _text(stream) as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for values in reader:
                if None in values or None in values.values():
                    fields = len(reader.fieldnames or [])
                    raise DataError(f"{path}:{reader.line_num}: the row has not the {fields} fields of the header.")
                yield values, str(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: broken CSV: {error}.") from error


def _read_txt(stream: IO[bytes], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Read a whole file as one document."""
    with _text(stream) as document:
        text = document.read()
    if text.strip():
        yield {"text": text}, "1"


def _read_hub(name: str, spec: DatasetSpec) -> Iterator[SourceRow]:
    import datasets

    try:
        rows = datasets.load_dataset(name, spec.subset, split=spec.split)
    except (ValueError, OSError) as error:  # every error of the hub client is one of the two
        raise DataError(
            f"{name!r} is no local path, and the hub data set could not be loaded "
            f"(subset {spec.subset!r}, split {spec.split!r}): {error}"
        ) from error
    for number, values in enumerate(rows, start=1):
        yield SourceRow(dict(values), f"{name}[{spec.split}]:row {number}")


_READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": read_parquet,
    ".csv": _read_csv,
    ".arrow": read_arrow,
    ".txt": _read_txt,
}
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": read_zstd}
