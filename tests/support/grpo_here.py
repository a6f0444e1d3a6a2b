"""GRPO runs in this process: the tiny run of tiny_grpo.py, with an engine that takes a second and pieces to replace."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.tiny_grpo import write_files

from surogate.cli.fit import SurogateCLI
from surogate.config.lower_grpo import to_lightning_grpo
from surogate.config.read_grpo import read_grpo


def nested(folder: Path, **files: dict[str, Any]) -> dict[str, Any]:
    """Write the files of a run, changed as tiny_grpo.write_files takes it, and lower them."""
    options = write_files(folder, **files)
    return to_lightning_grpo(read_grpo(*options[1::2]))


def train(folder: Path, **files: dict[str, Any]) -> SurogateCLI:
    """Run to the end and return what ran: trainer, model and datamodule."""
    return fit(nested(folder, **files))


def fit(config: dict[str, Any]) -> SurogateCLI:
    """Run a nested configuration to its end."""
    with _few_collections():
        return SurogateCLI({"subcommand": "fit", "fit": config})


@contextmanager
def _few_collections() -> Iterator[None]:
    """Spare the garbage collector what was there before, but once at the end.

    vLLM collects seven times at the start and the end of an engine, each time through all that was ever imported: half
    of a run's seconds.
    """
    gc.freeze()
    try:
        with patch("gc.unfreeze"):
            yield
    finally:
        gc.unfreeze()
        gc.collect()
