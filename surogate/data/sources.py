"""Sources of rows: a file, a folder or a hub data set, here or behind a URL, as rows of plain values.

What is not here: how a file is read (text_rows.py, tabular.py) and what the columns mean (formats.py). The one idea: a
source is opened at once and read on demand, again and again, without ever being held: every row knows where it came
from, `file:line`, and data is only ever parsed, never executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

from surogate.config.parts import DatasetSpec
from surogate.data.files import COMPRESSIONS, DataFile, LocalPlace, Place, TextFile, kind
from surogate.data.remote import RemotePlace, network_errors, said
from surogate.data.tabular import read_arrow, read_parquet
from surogate.data.text_rows import Row, read_csv, read_json, read_jsonl
from surogate.errors import DataError
from surogate.locations import is_url, resolve, without_credentials

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


@dataclass(frozen=True)
class Source:
    """The rows of a data set, read on demand.

    Attributes:
        name: what messages call it: the path as the user typed it, without credentials.
        samples: the most rows that are read, None for all.
    """

    name: str
    samples: int | None
    _read: Callable[[], Iterator[SourceRow]] = field(repr=False)
    _identify: Callable[[], str] = field(repr=False)

    def rows(self) -> Iterator[SourceRow]:
        """Yield the rows of a fresh pass, without reading on after the last.

        Raises:
            DataError: a file is broken (with its line), or there is no row at all.
        """
        empty = True
        for row in islice(self._read(), self.samples):
            empty = False
            yield row
        if empty:
            raise DataError(f"{self.name}: the data set is empty; it must hold at least one row.")

    def columns(self) -> list[str]:
        """Name the columns of the first row.

        Raises:
            DataError: as `rows`.
        """
        return list(next(self.rows()).values)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of all the files that belong to it: their names within it and their contents; not of `samples`.

        A file that was only touched or moved along with its folder keeps it.
        """
        return self._identify()


def open_source(spec: DatasetSpec) -> Source:
    """Find the files of a data set.

    Raises:
        DataError: nothing is there or can be reached, a type of file is unknown, or split or subset name none.
    """
    location = resolve(spec.path, urls=True)
    name = without_credentials(spec.path)
    if isinstance(location, str) and not is_url(location):
        data = _load_hub(name, spec)
        return Source(
            name, spec.samples, partial(_hub_rows, data, f"{name}[{spec.split}]"), partial(_hub_identity, data)
        )
    place: Place = RemotePlace(location) if isinstance(location, str) else LocalPlace(location)
    files = _files_of(place, name, spec) if place.is_folder() else [_single_file(place, name, spec)]
    return Source(name, spec.samples, partial(_rows_of, files), partial(_identity_of, files))


def _single_file(place: Place, name: str, spec: DatasetSpec) -> DataFile:
    for key in ("split", "subset"):
        if getattr(spec, key) != getattr(DatasetSpec, key):
            raise DataError(
                f"{name}: {key} is {getattr(spec, key)!r}, but this is one file; split and subset choose within "
                f"hub ids and folders only. Remove {key}, or give the file that holds what you mean."
            )
    file = place.file()
    if kind(file) not in _KINDS:
        raise DataError(f"{file.name}: unknown file type. Allowed are {_ALLOWED}.")
    return file


def _files_of(place: Place, name: str, spec: DatasetSpec) -> Sequence[DataFile]:
    if spec.subset is not None:
        inner = place.folder(spec.subset)
        if inner is None:
            raise DataError(f"{name}: subset is {spec.subset!r}, but there is no folder of that name.")
        place = inner
    files = [file for file in place.files() if _is_data(file)]
    if not files:
        raise DataError(f"{place.name}: the folder holds no data file. Allowed are {_ALLOWED}.")
    return _of_split(files, place.name, spec)


def _is_data(file: DataFile) -> bool:
    parts = file.inner.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and parts[-1].lower() not in _ABOUT_DATA and kind(file) in _KINDS


def _of_split(files: Sequence[DataFile], folder: str, spec: DatasetSpec) -> Sequence[DataFile]:
    """Keep the files of the split; all of them where nothing was asked for and no name tells of a split."""
    wanted = _SPLITS.get(spec.split, spec.split)
    names = [_split_of(file, wanted) for file in files]
    chosen = [file for file, split in zip(files, names, strict=True) if split == wanted]
    splits = sorted({name for name in names if name})
    if not chosen and (splits or spec.split != DatasetSpec.split):
        raise DataError(
            f"{folder}: split is {spec.split!r}, but no file is named after it. The folder's files are named after "
            f"{', '.join(splits) or 'no split'}. Set split to one of them, or give the path of a file."
        )
    if chosen and len(chosen) < len(files):
        log.info("%s: split %s is %d of the folder's %d files", folder, spec.split, len(chosen), len(files))
    return chosen or files


def _split_of(file: DataFile, wanted: str) -> str | None:
    """Read a split from a file's name (`test-00000-of-00002.parquet`, `news_test.jsonl`), else from its folders'."""
    suffixes = {suffix.removeprefix(".") for suffix in (*_KINDS, *COMPRESSIONS)}
    for part in reversed(file.inner.split("/")):
        if re.match(rf"{re.escape(wanted)}([-_.]|$)", part, re.IGNORECASE):
            return wanted
        words = [
            word for word in re.split("[-_.]", part.lower()) if word not in {"of", *suffixes} and not word.isdigit()
        ]
        for word in (*words[:1], *words[-1:]):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _rows_of(files: Sequence[DataFile]) -> Iterator[SourceRow]:
    for file in files:
        for values, place in _KINDS[kind(file)](file):
            yield SourceRow(values, f"{file.name}:{place}")


def _identity_of(files: Sequence[DataFile]) -> str:
    listed = json.dumps([(file.inner, file.digest()) for file in files])
    return hashlib.sha256(listed.encode()).hexdigest()


def _read_txt(file: DataFile) -> Iterator[Row]:
    """Give a whole file as one document, which is read when it is asked for."""
    text = TextFile(file)
    if any(block.strip() for block in text.blocks()):
        yield {"text": text}, "1"


def _load_hub(name: str, spec: DatasetSpec) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, spec.subset, split=spec.split)
    except network_errors(ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name!r} is no local path, and the hub data set could not be loaded "
            f"(subset {spec.subset!r}, split {spec.split!r}): {said(error)}"
        ) from error


def _hub_rows(data: Any, name: str) -> Iterator[SourceRow]:
    for number, values in enumerate(data, start=1):
        yield SourceRow(dict(values), f"{name}:row {number}")


def _hub_identity(data: Any) -> str:
    return f"hub {data._fingerprint}"


_KINDS: dict[str, Callable[[DataFile], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".arrow": read_arrow,
    ".txt": _read_txt,
}
_ALLOWED = f"{', '.join(_KINDS)}, each also with {', '.join(COMPRESSIONS)}"
_ABOUT_DATA = {
    *("readme.txt", "license.txt", "licence.txt", "notice.txt"),
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
}
"""Files of a type that is read, but which tell about the data; the last ones mark what `save_to_disk` wrote."""
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
