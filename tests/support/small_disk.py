"""A disk that can be filled: a small tmpfs for root, else a limit on the size of files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_BALLAST = "ballast"
_MAX_FILE_BYTES = 40 * 1024


@dataclass(frozen=True, kw_only=True)
class SmallDisk:
    """A folder on such a disk."""

    path: Path
    is_mounted: bool

    def fill(self, spare_bytes: int) -> None:
        """Leave no more room than this; without a mount the limit does it, in processes started with `limit`."""
        if not self.is_mounted:
            return
        with (self.path / _BALLAST).open("wb", buffering=0) as file, suppress(OSError):  # who writes there is as fast
            while (room := shutil.disk_usage(self.path).free - spare_bytes) > 0:
                file.write(bytes(room))

    def limit(self) -> Callable[[], None] | None:
        """What a process calls before it starts, so that its disk is full from the beginning; None for a mount."""
        limits = (_MAX_FILE_BYTES, _MAX_FILE_BYTES)
        return None if self.is_mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def make_room(self) -> None:
        """Remove what fills it."""
        (self.path / _BALLAST).unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """Mount a small disk at a path, where this process may."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
    is_mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield SmallDisk(path=path, is_mounted=is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
