"""The `surogate` command: which verb, its help, and how errors leave the process.

Nothing here imports torch, so help and configuration errors come at once. Verbs are imported when they are called; each
module has `main(argv) -> int`. The command line is re-executed as it is by every other rank of a run, so it must not
do anything heavy before the verb does.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
from contextlib import nullcontext

from surogate import __version__
from surogate.cli import help as pages
from surogate.config.keys import nearest
from surogate.errors import CheckpointError, ConfigError, Stopped, SurogateError
from surogate.ranks import is_first_process, is_launched_by_lightning, process_name
from surogate.stop_signals import STOP_SIGNALS

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""

_STOPPABLE = {"sft", "pt", "fit", "grpo", "grpo-train"}
"""Verbs that train, and listen to signals before torch is imported."""


def main(argv: list[str] | None = None) -> int:
    """Run `surogate VERB ...` and return the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    _configure_logging()
    try:
        return _dispatch(arguments)
    except SurogateError as error:
        _tell(f"error: {error}" if is_first_process() else f"{process_name()}: {str(error).splitlines()[0]}")
        return error.exit_code
    except Stopped as stopped:
        if is_first_process():
            print(f"stopped by {signal.Signals(stopped.signum).name}", file=sys.stderr)
        # Lightning kills the first process of a run where one that it has started ends with anything but 0.
        return 0 if STOP_SIGNALS.is_agreed and is_launched_by_lightning() else stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `surogate sft --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"{error.filename} could" if error.filename else "A file of the run could"
        text = f"error: {what} not be written: {error.strerror}. Make room; the same command then continues."
        _tell(text)
        return CheckpointError.exit_code


def _tell(text: str) -> None:
    """Print the last word of a run, and hand it to its log file."""
    print(text, file=sys.stderr)
    logging.getLogger("surogate.printed").error(text)


def _dispatch(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(pages.overview(), end="")
        return 0
    if verb in ("--version", "-V"):
        print(f"surogate {__version__}")
        return 0
    if verb in pages.NOT_YET_VERBS:
        raise ConfigError(f"surogate {verb} is not there yet: {pages.NOT_YET_VERBS[verb]}")
    if verb not in pages.VERBS:
        close = nearest(verb, [*pages.VERBS, *pages.NOT_YET_VERBS])
        hint = f"Did you mean {close}?" if close else "`surogate --help` lists all verbs."
        raise ConfigError(f"{verb!r} is not a verb. {hint}")
    wants_page = {"--help", "-h"} & set(rest) and "full" not in rest
    page = pages.page(verb) if wants_page else None
    if page:
        print(page, end="")
        return 0
    with STOP_SIGNALS.listening() if verb in _STOPPABLE else nullcontext():
        run: int = importlib.import_module(pages.VERBS[verb].module).main(rest)
    return run


def _configure_logging() -> None:
    """Print what Surogate says to stderr, from the first rank only."""
    logger = logging.getLogger("surogate")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    printed = logging.getLogger("surogate.printed")  # what is on the screen already; see callbacks/log_file.py
    printed.propagate = False
    if not printed.handlers:
        printed.addHandler(logging.NullHandler())  # or Python prints it once more
    logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a 4-bit kernel that nothing here uses


class _StderrHandler(logging.StreamHandler):
    """Writes to what sys.stderr is at the moment, so that progress bars and tests can redirect it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
