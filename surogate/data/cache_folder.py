"""The folder of what can be made again: token caches and remembered digests.

What is not here: what is put into it (cache.py, digests.py). The one idea: deleting it costs time and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return $SUROGATE_CACHE, else `surogate` under $XDG_CACHE_HOME or ~/.cache; it may not exist yet."""
    if own := os.environ.get("SUROGATE_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "surogate"
