"""The files over which a trainer and an orchestrator meet: where they are, and how they are written and read.

    <output_dir>/transport/
      orchestrator.json                    who answers: an id and a turn for each start, and a count that goes on
                                           while it lives
      calls/<session>/000017.call.json     {"method", "arguments"}; a session is one start of a trainer
      calls/<session>/000017.answer.json   {"by", "result"} or {"by", "problem", "kind"}
      weights/<session>/version_12/        an adapter, or merged weights; complete once it holds the file STABLE

What is not here: who says what (transport.py). The one idea: a file or a folder is written under another name and then
renamed, so that nobody reads half of one; and no machine's clock is compared with another's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from glob import glob
from pathlib import Path
from typing import Any

from surogate.errors import GeneratorError
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.weight_files import write_weights, write_whole

STABLE = "STABLE"
"""Stands in a folder of weights once they are all there."""

_KEPT_VERSIONS = 2


class SharedFolder:
    """The paths of a transport, as a session sees them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.orchestrator = path / "orchestrator.json"
        self.calls = path / "calls"
        self.weights = path / "weights"

    def call(self, session: str, number: int) -> Path:
        """Where a trainer's call is."""
        return self.calls / session / f"{number:06}.call.json"

    def pending_calls(self) -> list[Path]:
        """Return where calls are, of all sessions; a session's folder may vanish meanwhile, which Path.glob raises."""
        return [self.calls / name for name in glob("*/*.call.json", root_dir=self.calls)]

    def forget_other_calls(self, session: str) -> None:
        """Remove what earlier sessions asked and were answered."""
        _remove_but(self.calls, {session})

    def publish(self, update: WeightUpdate, session: str) -> Path:
        """Write weights and return their folder.

        A version is written once a session; another session's may have the same number and be others.

        Raises:
            GeneratorError: the disk is full, or the folder cannot be written.
        """
        folder = self.weights / session / f"version_{update.version}"
        if (folder / STABLE).exists():
            return folder

        def write(draft: Path) -> None:
            if source := update.adapter_dir or update.weights_dir:
                shutil.copytree(source, draft, dirs_exist_ok=True)
            else:
                assert update.tensors is not None
                write_weights(update.tensors(), draft)
            (draft / STABLE).touch()

        write_whole(write, folder)
        return folder

    def forget_weights(self, session: str, newest: int) -> None:
        """Remove all versions but the newest ones of a session; the engine must hold the newest."""
        _remove_but(self.weights, {session})
        _remove_but(self.weights / session, {f"version_{newest - age}" for age in range(_KEPT_VERSIONS)})


def _remove_but(folder: Path, kept: set[str]) -> None:
    for name in glob("*", root_dir=folder):
        if name not in kept:
            shutil.rmtree(folder / name, ignore_errors=True)


def answer_to(call: Path) -> Path:
    """Where the answer to a call is."""
    return call.with_name(call.name.replace(".call.", ".answer."))


def write_json(path: Path, value: Any) -> None:
    """Write plain values, all at once.

    Raises:
        GeneratorError: the disk is full, or the folder cannot be written.
    """
    write_text(path, json.dumps(value))


def write_text(path: Path, text: str) -> None:
    """Write a text, all at once; see write_json."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # two orchestrators may write at the same time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise GeneratorError(
            f"{path} could not be written: {error.strerror or error}. Make room, or give access."
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the values of a file; None where it is not there, or cannot be read."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value


class Pulse:
    """Whether an orchestrator still lives: its file changes. Only this process's clock is looked at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, Any] | None = None
        self._since = time.monotonic()
        self.has_changed = False
        """It did at least once, so that it lives or has lived since this object was made."""

    def look(self) -> str | None:
        """Read the file, and return the id of the orchestrator that wrote it last."""
        beat = read_json(self._path)
        if beat is not None and beat != self._seen:
            self.has_changed = self.has_changed or self._seen is not None
            self._seen, self._since = beat, time.monotonic()
        return self._seen["id"] if self._seen else None

    @property
    def silence(self) -> float:
        """Seconds since it changed last."""
        return time.monotonic() - self._since
