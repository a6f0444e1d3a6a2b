"""LogFile: everything that a run says, in a file too.

What is not here: what is said. The one idea: what goes through the loggers of Surogate is logged; lines that are
printed for a person to watch (progress, the last error) go through a logger of their own, which nobody prints.
"""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from surogate.errors import ConfigError

LOGGERS = ("surogate", "surogate.printed")


class _LogFileHandler(logging.FileHandler):
    """Told apart from the handlers of others, so that a second run in a process closes that of the first."""


class LogFile(pl.Callback):
    """Append to a file what is logged and printed, with the time.

    Args:
        path: the file. Other ranks than the first write beside it, `run.rank_1.log`, and only errors.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def open(self) -> None:
        """Begin to write; the run does so before it reads its data.

        Raises:
            ConfigError: the file cannot be written.
        """
        close()
        rank = getattr(rank_zero_only, "rank", 0)
        path = self.path if rank == 0 else self.path.with_suffix(f".rank_{rank}{self.path.suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = _LogFileHandler(path, encoding="utf-8", delay=rank != 0)
        except OSError as error:
            raise ConfigError(
                f"log_file: {path} cannot be written: {error.strerror or error}. Choose another file."
            ) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for name in LOGGERS:
            logging.getLogger(name).addHandler(handler)


def close() -> None:
    """Stop writing."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if isinstance(handler, _LogFileHandler)]:
            logger.removeHandler(handler)
            handler.close()
