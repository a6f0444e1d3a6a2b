"""Digests of files, remembered, so that a large corpus is hashed once and recognised at once the next time.

What is not here: what a digest is used for (sources.py). The one idea: a file that kept its path, size, inode and time
of change kept its contents. Each large file has a record of its own, which is replaced whole: concurrent writers can
only overwrite each other with the same, and a record that cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

from surogate.data.cache_folder import cache_dir

log = logging.getLogger(__name__)

_REMEMBERED_FROM = 1 << 20
"""Bytes; hashing a smaller file takes about as long as looking it up."""
_SAID_FROM = 1 << 30
_SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change once more within the resolution of its time stamp."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        if stat.st_size < _REMEMBERED_FROM:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        identity: list[str | int] = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        record = cache_dir() / "digests" / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        digest = _remembered(record, identity)
        if digest is None:
            if stat.st_size >= _SAID_FROM:
                log.info("%s: taking the digest of %.1f GB, this once", path, stat.st_size / 1e9)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
                _remember(record, identity, digest)
        return digest


def _remembered(record: Path, identity: list[str | int]) -> str | None:
    try:
        held = json.loads(record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    valid = isinstance(held, dict) and held.get("file") == identity and isinstance(held.get("sha256"), str)
    return held["sha256"] if valid else None


def _remember(record: Path, identity: list[str | int], digest: str) -> None:
    written = record.with_name(f"{record.name}.{os.getpid()}-{time.monotonic_ns()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps({"file": identity, "sha256": digest}))
        os.replace(written, record)
    except OSError as error:  # a full disk or a read-only home costs the next run its time, not this one its start
        log.debug("the digest of %s is not remembered: %s", identity[0], error)
