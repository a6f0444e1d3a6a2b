"""Runs in processes of their own, for a verification, with their output in a file."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from surogate.errors import CheckpointError

_log = logging.getLogger(__name__)
_GOOD = (0, 128 + signal.SIGTERM)
"""Exit codes of a run that was through, or stopped where it was told to."""
_SHOWN_LINES = 15


class Launcher:
    """Starts `surogate fit` on nested configurations, one after the other.

    Args:
        folder: for the configurations and the output of the runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, nested: dict[str, Any], title: str) -> None:
        """Run a configuration and wait for it.

        Raises:
            CheckpointError: it failed; with the end of what it said.
        """
        self._count += 1
        config, output = (self._folder / f"run-{self._count}.{suffix}" for suffix in ("yaml", "log"))
        config.write_text(yaml.safe_dump(nested, sort_keys=False), encoding="utf-8")
        _log.info("Running %s ...", title)
        start = time.monotonic()
        with output.open("w", encoding="utf-8") as file:
            command = [sys.executable, "-m", "surogate", "fit", "--config", str(config)]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code not in _GOOD:
            said = "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:])
            raise CheckpointError(
                f"The run itself failed ({title}; exit code {code}), so nothing was compared:\n{said}"
            )
        _log.info("  done in %.0f seconds", time.monotonic() - start)
