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
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
