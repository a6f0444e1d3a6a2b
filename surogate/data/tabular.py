"""Row readers that need pyarrow, which is imported only when such a file is met: parquet and arrow.

What is not here: text formats (text_rows.py) and the choice of a reader (sources.py). The one idea: tables are read in
slices and handed on as plain Python values, so that no row type of a library travels further and no table is ever held
whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from surogate.data.files import DataFile, LocalFile, compression, opened
from surogate.data.remote import said
from surogate.data.text_rows import Row
from surogate.errors import DataError

_FILE_MAGIC = b"ARROW1"
_SLICE_ROWS = 256
"""Rows that are plain Python values at a time; one may be a whole book."""
_COLUMN_BUFFER = 1 << 20
"""Bytes of a column that are read at a time: a row group may be as large as its file."""


def read_parquet(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a parquet file with their places; a compressed one is read whole first."""
    import pyarrow
    from pyarrow import parquet

    with opened(file, seeks=True) as stream:
        source = pyarrow.BufferReader(stream.read()) if compression(file) else stream
        with _broken_file(file, "parquet"):
            table = parquet.ParquetFile(source, pre_buffer=False, buffer_size=_COLUMN_BUFFER)
            _check_columns(table.schema_arrow)
            yield from _rows(table.iter_batches(batch_size=_SLICE_ROWS))


def read_arrow(file: DataFile) -> Iterator[Row]:
    """Yield the rows of an arrow file, in the file or the stream format, with their places.

    A file of this machine is mapped: of a batch that is larger than memory only a slice is held.
    """
    import pyarrow

    with opened(file) as stream:
        is_file = stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    with opened(file, seeks=is_file) as stream, _broken_file(file, "arrow"):
        source: Any = stream
        if isinstance(file, LocalFile) and not compression(file):
            source = pyarrow.memory_map(str(file.path))
        elif is_file and compression(file):  # its index is at its end
            source = pyarrow.BufferReader(stream.read())
        table = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
        _check_columns(table.schema)
        yield from _rows((table.get_batch(i) for i in range(table.num_record_batches)) if is_file else table)


@contextmanager
def _broken_file(file: DataFile, type_: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:  # of a flipped length
        raise DataError(f"{file.name}: broken {type_} file: {said(error)}") from error


def _check_columns(schema: Any) -> None:
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} stands there twice")


def _rows(batches: Iterable[Any]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _SLICE_ROWS):
            part = batch.slice(start, _SLICE_ROWS)
            part.validate(full=True)  # a flipped bit in an offset would read another part of memory
            for values in part.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield {name: _without_filled_in(value) for name, value in values.items()}, f"row {number}"


def _without_filled_in(value: Any) -> Any:
    """Drop the fields that a struct has only because others of its column have them, as the arguments of tool calls do.

    A column of structs is a list of messages or the like, whose own nulls mean something.
    """
    if isinstance(value, list):
        return [
            {name: _without_nulls(inner) for name, inner in item.items()} if isinstance(item, dict) else item
            for item in value
        ]
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
