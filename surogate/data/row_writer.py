"""Writing rows end to end into the arrays of a RowStore, as they come.

What is not here: reading them (row_store.py). The one idea: nothing is held but a buffer of about a million tokens, and
the digest that tells two stores apart is computed on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from surogate.batches import TokenRow

MANIFEST = "manifest.json"
COLUMNS: dict[str, str] = {
    "tokens": "<i4",  # of all rows end to end; <u2 where the vocabulary fits
    "mask": "|u1",  # np.packbits of their loss masks, end to end
    "offsets": "<i8",  # (rows + 1,) where each row starts
    "continues": "|b1",  # of each row: its last token has a target, the first token of the next row
    "loss_tokens": "<i4",  # of each row: supervised tokens
    "documents": "<i8",  # of each row: number of its document
    "hashes": "<u8",  # of each document: hash of its content
    "origins": "<i8",  # of each document: which prefix, and the number behind it (-1 = none)
}
"""Name of each array, which is also its file, and its type."""

_BUFFERED_TOKENS = 1 << 20
_ORIGIN = re.compile(r"(.*?)(0|[1-9]\d{0,17})?", re.DOTALL)


class RowWriter:
    """Writes documents one after another.

    Args:
        sinks: a stream for each of COLUMNS.
        token_dtype: np.uint16 or np.int32.
    """

    def __init__(self, sinks: Mapping[str, BinaryIO], token_dtype: type[np.uint16] | type[np.int32]) -> None:
        self._sinks = sinks
        self._dtypes = {**COLUMNS, "tokens": "<u2" if token_dtype is np.uint16 else "<i4"}
        self._digests = {name: hashlib.sha256() for name in ("tokens", "mask", "offsets", "continues")}
        self._sizes = dict.fromkeys(COLUMNS, 0)
        self._rows: list[TokenRow] = []
        self._mask_rest = np.empty(0, dtype=bool)
        self._pending: dict[str, list[int]] = {name: [] for name in ("documents", "hashes", "origins")}
        self._prefixes: dict[str, int] = {}
        self._buffered_tokens = 0
        self._rows_of_document = 0
        self.num_rows = 0
        self.num_tokens = 0
        self.num_documents = 0
        self._write("offsets", [0])

    def add(self, row: TokenRow) -> None:
        """Append a row to the present document; one with a next_token is continued by the next that is added."""
        self._rows.append(row)
        self._pending["documents"].append(self.num_documents)
        self._rows_of_document += 1
        self._buffered_tokens += len(row)
        if self._buffered_tokens >= _BUFFERED_TOKENS:
            self._flush()

    def end_document(self, origin: str, content_hash: int) -> None:
        """Close the present document; one without a row leaves no trace."""
        if not self._rows_of_document:
            return
        assert not self._rows or self._rows[-1].next_token is None, f"{origin} ends with a row that goes on"
        prefix, number = _ORIGIN.fullmatch(origin).groups()  # type: ignore[union-attr]  # it matches every string
        self._pending["hashes"].append(content_hash)
        self._pending["origins"] += [self._prefixes.setdefault(prefix, len(self._prefixes)), int(number or -1)]
        self.num_documents += 1
        self._rows_of_document = 0

    def finish(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Write what is left.

        Returns:
            The manifest.
        """
        assert not self._rows_of_document, "the last document was not ended"
        self._flush()
        self._write("mask", np.packbits(self._mask_rest))
        whole = "".join(digest.hexdigest() for digest in self._digests.values())
        return {
            "fingerprint": hashlib.sha256(whole.encode()).hexdigest()[:16],
            "info": dict(info),
            "origin_prefixes": list(self._prefixes),
            "dtypes": self._dtypes,
            "sizes": self._sizes,
        }

    def _flush(self) -> None:
        rows, self._rows, self._buffered_tokens = self._rows, [], 0
        for name, values in self._pending.items():
            self._write(name, values)
            values.clear()
        if not rows:
            return
        masks = np.concatenate([self._mask_rest, *(row.loss_mask for row in rows)])
        whole_bytes = len(masks) // 8 * 8
        self._mask_rest = masks[whole_bytes:]
        ends = self.num_tokens + np.cumsum([len(row) for row in rows])
        self._write("tokens", np.concatenate([row.input_ids for row in rows]))
        self._write("mask", np.packbits(masks[:whole_bytes]))
        self._write("offsets", ends)
        self._write("continues", [row.next_token is not None for row in rows])
        self._write("loss_tokens", [np.count_nonzero(r.loss_mask[1:]) + (r.next_token is not None) for r in rows])
        self.num_rows += len(rows)
        self.num_tokens = int(ends[-1])

    def _write(self, name: str, values: Any) -> None:
        content = np.asarray(values, dtype=self._dtypes[name]).tobytes()
        self._sinks[name].write(content)
        self._sizes[name] += len(content)
        if name in self._digests:
            self._digests[name].update(content)


def write_store(
    folder: Path, token_dtype: type[np.uint16] | type[np.int32], fill: Callable[[RowWriter], Mapping[str, Any]]
) -> None:
    """Write a store into an empty folder and make it durable: the arrays first, then the manifest.

    Args:
        folder: exists.
        token_dtype: of the token ids.
        fill: adds the documents and returns the store's info.
    """
    with ExitStack() as stack:
        sinks = {name: stack.enter_context((folder / name).open("wb")) for name in COLUMNS}
        writer = RowWriter(sinks, token_dtype)
        manifest = writer.finish(fill(writer))
        for sink in sinks.values():
            sink.flush()
            os.fsync(sink.fileno())
    with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
