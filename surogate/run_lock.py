"""The lock of a run's folder: one command at a time writes there, and the folder can be written at all.

What is not here: which run a folder belongs to (run_folder.py). The one idea: the lock is the kernel's (flock), held by
global rank 0 for as long as it runs, so it ends with the process, however that ends. The file itself stays and says
who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surogate.errors import CheckpointError, ConfigError
from surogate.ranks import is_first_process

LOCK_FILE = "run.lock"
GRACE_SECONDS = 3.0
"""How long a lock may outlive a killed process: the kernel takes its memory back first."""
REQUEUE_SECONDS = 180.0
"""The same after SLURM has started a job again, perhaps on another node: a file server forgets a lost node late."""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_log = logging.getLogger(__name__)


class _Held:
    """A lock that this process holds, and how often it was asked for."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.count = descriptor, 1


_held: dict[Path, _Held] = {}


def _forget_in_child() -> None:
    """Give up what a fork has copied, or a loader's worker would keep the lock of a killed run."""
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def run_folder_lock(output_dir: str | Path, checkpoint_dir: str | Path | None = None) -> Iterator[None]:
    """Hold the folders of a run in its first process; in the others nothing is done.

    Args:
        output_dir: made where it is not there.
        checkpoint_dir: the same, where it is another folder.

    Raises:
        ConfigError: a folder cannot be made or written.
        CheckpointError: another command is writing there.
    """
    if not is_first_process():
        yield
        return
    folders = lock_run_folder(output_dir, checkpoint_dir)
    try:
        yield
    finally:
        unlock(folders)


def lock_run_folder(output_dir: str | Path, checkpoint_dir: str | Path | None = None) -> list[Path]:
    """Lock the folders of a run, and return what `unlock` gives back.

    A process may lock a folder several times, and gives it back as often.

    Raises:
        ConfigError: a folder cannot be made or written.
        CheckpointError: another command is writing there.
    """
    keys = {"output_dir": output_dir, "checkpoint_dir": checkpoint_dir}
    locked: list[Path] = []
    try:
        for key, folder in keys.items():
            if folder is not None and Path(folder).resolve() not in locked:
                locked.append(_lock(Path(folder), key))
    except (ConfigError, CheckpointError):
        unlock(locked)
        raise
    return locked


def unlock(folders: Iterable[Path]) -> None:
    """Give locked folders back."""
    for folder in folders:
        held = _held.get(folder)
        if held is None:
            continue  # a fork's child has none
        held.count -= 1
        if held.count == 0:
            os.close(_held.pop(folder).descriptor)


def _lock(folder: Path, key: str) -> Path:
    resolved = folder.resolve()
    if resolved in _held:
        _held[resolved].count += 1
        return resolved
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(folder, key, error) from error
    try:
        _wait_for_lock(descriptor, folder, key)
        _sign(descriptor)
    except OSError as error:
        os.close(descriptor)
        raise _unwritable(folder, key, error) from error
    except CheckpointError:
        os.close(descriptor)
        raise
    _held[resolved] = _Held(descriptor)
    return resolved


def _unwritable(folder: Path, key: str, error: OSError) -> ConfigError:
    reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror or str(error)
    return ConfigError(
        f"{key}: {folder} cannot be made or written ({reason}). Name another folder, or make this one writable."
    )


def _wait_for_lock(descriptor: int, folder: Path, key: str) -> None:
    """Take the lock, or say who has it; where the file system knows no locks, say that.

    Raises:
        CheckpointError: another process holds it.
        OSError: the file system failed otherwise.
    """
    start, has_said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(descriptor)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _log.warning(
                "The file system of %s knows no locks (%s), so nothing keeps a second command from writing there.",
                folder,
                error.strerror,
            )
            return
        is_requeued = "job" in holder and holder["job"] == os.environ.get("SLURM_JOB_ID")
        if time.monotonic() - start > (REQUEUE_SECONDS if is_requeued else GRACE_SECONDS):
            who = f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "a process"
            raise CheckpointError(
                f"{key}: {folder} is being written by another command: {who}. "
                f"Wait for it or stop it, or choose another {key}."
            )
        if is_requeued and not has_said:
            _log.info("Waiting until this job's earlier process on %s has let go of %s.", holder.get("host"), folder)
            has_said = True
        time.sleep(0.1)


def _sign(descriptor: int) -> None:
    """Write into the lock's file who holds it."""
    holder = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    if job := os.environ.get("SLURM_JOB_ID"):
        holder["job"] = job
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # taken a moment ago, and not signed yet
        return {}
    return holder if isinstance(holder, dict) else {}
