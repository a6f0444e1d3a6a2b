"""What a W&B run wrote down: the records of its .wandb files, read without W&B's Go program.

The file is a log of LevelDB (https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a header of 7 bytes;
each entry is a Record of W&B's own protobuf.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32768
_HEADER = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of all .wandb files of a run, oldest file first, with `_step`; what W&B adds besides is left out."""
    rows = []
    for path in files(run_dir):
        for record in _records(path):
            if record.WhichOneof("record_type") == "history":
                items = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                rows.append({name: value for name, value in items.items() if name[0] != "_" or name == "_step"})
    return rows


def config(run_dir: Path) -> dict[str, Any]:
    """The configuration that the run has in W&B."""
    values: dict[str, Any] = {}
    for path in files(run_dir):
        for record in _records(path):
            kind = record.WhichOneof("record_type")
            update = record.config if kind == "config" else record.run.config if kind == "run" else None
            for item in update.update if update is not None else ():
                values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return values


def run_ids(run_dir: Path) -> list[str]:
    """The id of the run in each file."""
    runs = (r.run.run_id for path in files(run_dir) for r in _records(path) if r.WhichOneof("record_type") == "run")
    return list(runs)


def files(run_dir: Path) -> list[Path]:
    """The .wandb files of a run, oldest first."""
    return sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def _records(path: Path) -> Iterator[Any]:
    for entry in _entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(entry)
        yield record


def _entries(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # the rest of a block is too small for a header
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            return
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
