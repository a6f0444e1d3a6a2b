"""What a process has started and holds, read from /proc: descendants, shared memory, and whether they still exist."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


def _status(pid: int) -> tuple[str, int] | None:
    """State and parent of a process; None where there is none."""
    try:
        state, parent = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)


def is_alive(pid: int) -> bool:
    """Whether a process is more than an entry that nobody has asked about."""
    status = _status(pid)
    return status is not None and status[0] not in ("Z", "X")


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (status := _status(int(entry.name))) is not None:
            children.setdefault(status[1], []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found += (of_one := children.get(todo.pop(), []))
        todo += of_one
    return found


def command_line(pid: int) -> str:
    """The words of a process, or nothing where it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def shared_memory(pid: int) -> set[str]:
    """Segments of shared memory that a process has mapped and that have a name."""
    try:
        lines = (PROC / str(pid) / "maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {line.split()[-1] for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")}


@dataclass(frozen=True)
class Family:
    """A process and all that it has started, as they were at one moment.

    Attributes:
        pids: processes.
        segments: of shared memory.
    """

    pids: tuple[int, ...]
    segments: frozenset[str]

    @classmethod
    def of(cls, pid: int) -> Family:
        """Look at what there is."""
        pids = (pid, *descendants(pid))
        return cls(pids, frozenset().union(*map(shared_memory, pids)))

    def left(self, seconds: float) -> list[str]:
        """Wait until nothing of it is there any more, and return what still is after so long."""
        deadline = time.monotonic() + seconds
        while (found := self._left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _left(self) -> list[str]:
        processes = [f"{pid}: {command_line(pid)}" for pid in self.pids if is_alive(pid)]
        return processes + sorted(segment for segment in self.segments if Path(segment).exists())


_EARLIER: set[int] = set()


def forget_children() -> None:
    """Leave out of `children` those that this process has now; another test's may still be there."""
    _EARLIER.update(_children())


def children() -> list[str]:
    """Processes that this one has started and not waited for."""
    return [f"{pid}: {command_line(pid)}" for pid in _children() if pid not in _EARLIER]


def _children() -> list[int]:
    """Of all threads; one may end while they are looked for."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found
