"""Row readers that need pyarrow: parquet, arrow and Zstandard streams; imported only when such a file is met.

What is not here: text formats and the choice of a reader (sources.py). The one idea: tables are read batch by batch and
handed on as plain Python values, so that no row type of a library travels further.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from surogate.errors import DataError


def read_parquet(stream: IO[bytes], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of a parquet file with their places."""
    import pyarrow
    from pyarrow import parquet

    try:
        yield from _rows(parquet.ParquetFile(_seekable(stream)).iter_batches())
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: broken parquet file: {error}") from error


def read_arrow(stream: IO[bytes], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of an arrow file, in the file or the stream format, with their places."""
    import pyarrow

    content = stream.read()
    try:
        if content.startswith(b"ARROW1"):
            reader = pyarrow.ipc.open_file(content)
            yield from _rows(reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from _rows(pyarrow.ipc.open_stream(content))
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: broken arrow file: {error}") from error


def read_zstd(path: Path) -> IO[bytes]:
    """Open a Zstandard file for reading."""
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


def _seekable(stream: IO[bytes]) -> Any:
    """Give parquet, which reads its end first, a stream that can seek; a decompressing one cannot do so cheaply."""
    import pyarrow

    return pyarrow.BufferReader(stream.read())


def _rows(batches: Iterable[Any]) -> Iterator[tuple[dict[str, Any], str]]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield values, f"row {number}"
