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
import logging
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from surogate.config.parts import DatasetSpec
from surogate.data.tabular import read_arrow, read_parquet, read_zstd
from surogate.errors import DataError
from surogate.locations import resolve

log = logging.getLogger(__name__)


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
        DataError: nothing is there, a file is broken (with its line), there is no row, or split or subset name none.
    """
    location = resolve(spec.path)
    if isinstance(location, str):
        rows = _read_hub(location, spec)
    elif location.is_dir():
        rows = _read_folder(location, spec)
    else:
        _refuse_choice_in_a_file(spec)
        rows = _read_file(location)
    held = list(islice(rows, spec.samples))
    if not held:
        raise DataError(f"{spec.path}: the data set is empty; it must hold at least one row.")
    return held


def _refuse_choice_in_a_file(spec: DatasetSpec) -> None:
    for key in ("split", "subset"):
        if getattr(spec, key) != getattr(DatasetSpec, key):
            raise DataError(
                f"{spec.path}: {key} is {getattr(spec, key)!r}, but this is one file; split and subset choose within "
                f"hub ids and folders only. Remove {key}, or give the file that holds what you mean."
            )


def _read_folder(folder: Path, spec: DatasetSpec) -> Iterator[SourceRow]:
    if spec.subset is not None:
        folder = folder / spec.subset
        if not folder.is_dir():
            raise DataError(f"{spec.path}: subset is {spec.subset!r}, but there is no folder {folder}.")
    if any(all((folder / name).is_file() for name in names) for names in _SAVED_TO_DISK):
        return _read_saved(folder, spec)
    files = [path for path in sorted(folder.rglob("*")) if _is_data(path, folder)]
    if not files:
        raise DataError(f"{folder}: the folder holds no data file. Allowed are {_allowed()}.")
    return (row for path in _of_split(files, folder, spec) for row in _read_file(path))


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    about_data = path.name.lower() in _ABOUT_DATA
    return path.is_file() and not hidden and not about_data and _reader_and_opener(path) is not None


def _of_split(files: Sequence[Path], folder: Path, spec: DatasetSpec) -> Sequence[Path]:
    """Keep the files of the split; all of them where nothing was asked for and no name tells of a split."""
    wanted = _SPLITS.get(spec.split, spec.split)
    names = {path: _split_of(path, folder, wanted) for path in files}
    chosen = [path for path in files if names[path] == wanted]
    splits = sorted({name for name in names.values() if name})
    if not chosen and (splits or spec.split != DatasetSpec.split):
        raise DataError(
            f"{folder}: split is {spec.split!r}, but no file is named after it. The folder's files are named after "
            f"{', '.join(splits) or 'no split'}. Set split to one of them, or give the path of a file."
        )
    if chosen and len(chosen) < len(files):
        log.info("%s: split %s is %d of the folder's %d files", folder, spec.split, len(chosen), len(files))
    return chosen or files


def _split_of(path: Path, folder: Path, wanted: str) -> str | None:
    """Read a split from a file's name (`test-00000-of-00002.parquet`, `news_test.jsonl`), else from its folders'."""
    suffixes = {suffix.removeprefix(".") for suffix in (*_READERS, *_OPENERS)}
    for part in reversed(path.relative_to(folder).parts):
        if re.match(rf"{re.escape(wanted)}([-_.]|$)", part, re.IGNORECASE):
            return wanted
        words = [
            word for word in re.split("[-_.]", part.lower()) if word not in {"of", *suffixes} and not word.isdigit()
        ]
        for word in (*words[:1], *words[-1:]):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _read_saved(folder: Path, spec: DatasetSpec) -> Iterator[SourceRow]:
    """Read what `save_to_disk` of the datasets library wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (ValueError, OSError) as error:
        raise DataError(f"{folder}: the saved data set cannot be loaded: {error}") from error
    splits = saved if isinstance(saved, dict) else {str(saved.split or DatasetSpec.split): saved}
    if spec.split not in splits:
        raise DataError(f"{folder}: split is {spec.split!r}, but the saved data set has {', '.join(splits)}.")
    for number, values in enumerate(splits[spec.split], start=1):
        yield SourceRow(dict(values), f"{folder}[{spec.split}]:row {number}")


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
    if not content.strip():
        return
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # many a .json file holds JSON lines
            yield from _read_jsonl(io.BytesIO(content), path)
            return
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}.") from error
    rows = document if isinstance(document, list) else _rows_within(document) or [document]
    for number, values in enumerate(rows, start=1):
        yield _object(values, f"{path}:row {number}"), f"row {number}"


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

_SAVED_TO_DISK = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
"""Files that mark a folder of `save_to_disk`, with splits and without."""
_ABOUT_DATA = {"readme.txt", "license.txt", "licence.txt", "notice.txt", "dataset_info.json", "dataset_infos.json"}
"""Files of a type that is read, but which tell about the data."""
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "eval",
    "evaluation": "eval",
    "test": "test",
    "testing": "test",
}
"""Words in the names of files that tell of a split, and the split."""
