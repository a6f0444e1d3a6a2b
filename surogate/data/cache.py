"""Token stores on disk, found again by everything that they were made from.

What is not here: what a key holds and how a store is built (prepare.py). The one idea: a store is built in a folder of
its own and renamed when it is complete and on the disk, so that there is never half a one. Whoever holds the lock
builds; all others wait and then open. Deleting the folder costs the time of building, and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surogate.data.cache_folder import cache_dir
from surogate.data.row_store import RowStore
from surogate.errors import DataError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every key; raised when the same settings give other tokens or other files than before."""


class TokenCache:
    """Stores by key.

    Args:
        folder: holds a folder for each key; default `tokens` in the cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "tokens"

    def get(self, key: Mapping[str, Any], build: Callable[[Path], None]) -> RowStore:
        """Open the store of a key; build it first where it is missing or damaged.

        Args:
            key: plain values.
            build: writes the store into the empty folder that it is given.

        Raises:
            DataError: the folder cannot be written, or `build` raised it.
        """
        described = json.dumps({"format": FORMAT_VERSION, **key}, sort_keys=True, indent=1)
        place = self.folder / hashlib.sha256(described.encode()).hexdigest()[:32]
        store = _open(place)
        if store:
            return store
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(place.with_name(f"{place.name}.lock")):
                store = _open(place)  # whoever held the lock before has built it
                return store or self._build(place, described, build)
        except OSError as error:
            raise DataError(
                f"The token cache in {self.folder} cannot be written: {error.strerror or error}. Free "
                "some space there, or set the environment variable SUROGATE_CACHE to another folder."
            ) from error

    def _build(self, place: Path, described: str, build: Callable[[Path], None]) -> RowStore:
        for leftover in place.parent.glob(f"{place.name}.building-*"):  # of builds that were killed
            shutil.rmtree(leftover)
        draft = place.with_name(f"{place.name}.building-{os.getpid()}")
        draft.mkdir()
        try:
            build(draft)
            (draft / "key.json").write_text(described, encoding="utf-8")
            _sync(draft)
            if place.exists():
                log.warning("%s is damaged and is replaced", place)
                shutil.rmtree(place)
            draft.rename(place)
            _sync(place.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return RowStore.open(place)


def _open(place: Path) -> RowStore | None:
    """Open a complete store; None where there is none."""
    try:
        return RowStore.open(place)
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which the system releases when the process ends, however it does."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that tokenises the same data")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
