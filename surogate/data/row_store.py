"""All tokenised rows of a source as flat arrays, memory-mapped where they lie in the cache.

What is not here: making the rows (encoding.py, text.py), writing them (row_writer.py), and finding them again
(cache.py). The one idea: tokens and loss-mask bits lie end to end in files, so that lengths are a difference of
offsets, all processes share one copy in memory, opening a store reads no token, and the fingerprint was computed as it
was written.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from surogate.batches import TokenRow
from surogate.data.row_writer import COLUMNS, MANIFEST, RowWriter


class RowStore:
    """Rows by number.

    Args:
        columns: the arrays of row_writer.COLUMNS, of the whole store.
        manifest: what the writer knew at its end.
        folder: where the arrays are memory-mapped from, None where they are in memory.
        rows: the rows of the whole store that this view shows, None for all.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        manifest: Mapping[str, Any],
        folder: Path | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self._columns = columns
        self._manifest = manifest
        self._rows = rows
        self.folder = folder
        self.info: dict[str, Any] = manifest["info"]
        """What the build found, for the whole store: see encoding.Counts."""

    @classmethod
    def build(cls, rows: Iterable[TokenRow]) -> RowStore:
        """Store rows in memory, each as a document of its own."""
        sinks = {name: io.BytesIO() for name in COLUMNS}
        writer = RowWriter(sinks, token_dtype=np.int32)
        for number, row in enumerate(rows):
            writer.add(row)
            if row.next_token is None:
                content = hashlib.blake2b(row.input_ids.tobytes(), digest_size=8)
                writer.end_document(f"row {number}", int.from_bytes(content.digest()))
        manifest = writer.finish({})
        columns = {name: np.frombuffer(sinks[name].getbuffer(), manifest["dtypes"][name]) for name in COLUMNS}
        return cls(columns, manifest)

    @classmethod
    def open(cls, folder: Path) -> RowStore:
        """Map the arrays of a folder that was written completely.

        Raises:
            OSError: a file is missing.
            ValueError: a file is not of the size that it was written with.
        """
        manifest = json.loads((folder / MANIFEST).read_bytes())
        columns = {}
        for name in COLUMNS:
            path, size, dtype = folder / name, manifest["sizes"][name], np.dtype(manifest["dtypes"][name])
            if path.stat().st_size != size:
                raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {size}")
            mapped = np.memmap(path, dtype, mode="r") if size else np.empty(0, dtype)
            columns[name] = np.asarray(mapped)  # the subclass makes every slice slower
        return cls(columns, manifest, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the arrays lie instead of what they hold."""
        if self.folder is None:
            return RowStore, (self._columns, self._manifest, None, self._rows)
        return _reopen, (self.folder, self._rows)

    def select(self, rows: np.ndarray) -> RowStore:
        """Give a view of some rows.

        Args:
            rows: their numbers in this store, in the order they are to have.
        """
        if np.array_equal(rows, np.arange(len(self))):
            return self
        chosen = rows if self._rows is None else self._rows[rows]
        return RowStore(self._columns, self._manifest, self.folder, chosen)

    def __len__(self) -> int:
        return len(self._columns["documents"]) if self._rows is None else len(self._rows)

    def __getitem__(self, row: int) -> TokenRow:
        tokens, offsets = self._columns["tokens"], self._columns["offsets"]
        index = row if self._rows is None else int(self._rows[row])
        start, end = int(offsets[index]), int(offsets[index + 1])
        bits = np.unpackbits(self._columns["mask"][start // 8 : -(-end // 8)])
        mask = bits[start % 8 : start % 8 + end - start].astype(bool)
        next_token = int(tokens[end]) if self._columns["continues"][index] else None
        return TokenRow(tokens[start:end].astype(np.int32), mask, next_token)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return self._of_rows(np.diff(self._columns["offsets"]))

    @cached_property
    def num_loss_tokens(self) -> np.ndarray:
        """Supervised tokens of each row; a first token can never be one, a next_token is one."""
        return self._of_rows(self._columns["loss_tokens"])

    @cached_property
    def documents(self) -> np.ndarray:
        """Number of each row's document in the whole store."""
        return self._of_rows(self._columns["documents"])

    @property
    def document_hashes(self) -> np.ndarray:
        """(documents of the whole store,) uint64, equal where the contents are."""
        return self._columns["hashes"]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the rows and their order."""
        whole: str = self._manifest["fingerprint"]
        if self._rows is None:
            return whole
        return hashlib.sha256(whole.encode() + self._rows.astype("<i8").tobytes()).hexdigest()[:16]

    def origin(self, row: int) -> str:
        """Say where a row's document stands, as `file:line`."""
        prefix, number = self._columns["origins"].reshape(-1, 2)[self.documents[row]].tolist()
        return f"{self._manifest['origin_prefixes'][prefix]}{number if number >= 0 else ''}"

    def _of_rows(self, values: np.ndarray) -> np.ndarray:
        return values if self._rows is None else values[self._rows]


def _reopen(folder: Path, rows: np.ndarray | None) -> RowStore:
    store = RowStore.open(folder)
    return store if rows is None else store.select(rows)
