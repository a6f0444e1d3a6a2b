"""Whether a disk has room for what is about to be written.

The one idea: a checkpoint that does not fit is refused before its first byte, while everything on the disk is whole.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

SLACK_BYTES = 2**20
"""For names, manifests and what a file system needs for itself."""


def check_room(path: Path, needed_bytes: int) -> None:
    """Refuse to begin what cannot be finished.

    Args:
        path: of the file; its folder exists.
        needed_bytes: size of its content.

    Raises:
        OSError: the one that a full disk gives.
    """
    if shutil.disk_usage(path.parent).free < needed_bytes + SLACK_BYTES:
        raise not_written(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed_bytes)


def not_written(error: OSError | RuntimeError, needed_bytes: int) -> OSError:
    """Return what the system said when a file of so many bytes could not be written.

    Args:
        error: that was met; torch's writer reports a full disk as its own confusion, on top of what the system said.
        needed_bytes: size of the file's content.

    Raises:
        RuntimeError: the error itself, where the system said nothing.
    """
    said = error if isinstance(error, OSError) else error.__context__
    if not isinstance(said, OSError):
        raise error
    return OSError(said.errno, f"{said.strerror}, where {needed_bytes / 2**20:,.1f} MiB are needed")
