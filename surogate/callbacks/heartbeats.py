"""What each rank is doing, in files that all ranks can read without talking to each other.

What is not here: when to look (watchdog.py).

The one idea: a rank that hangs cannot answer, so every rank leaves word while it still can. Who is furthest behind is
who the others wait for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from surogate.modes.activity import split_phase

ORDER = (
    "preparing",
    "fetching the next batch",
    "comparing with the engine",
    "waiting for the other ranks' token counts",
    "forward pass",
    "backward pass",
    "scaling the gradients",
    "waiting for the other ranks' loss",
    "updating the weights",
    "publishing the weights",
    "evaluating",
    "finishing the step",
    "validating",
    "saving a checkpoint",
    "ending the run",
)
"""The phases of a step in their order."""


def place_in_step(phase: str) -> int:
    """Return where a phase stands in a step; behind all others, where it is unknown."""
    return ORDER.index(phase) if phase in ORDER else len(ORDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A rank's last word.

    Attributes:
        rank: global.
        host: name of its machine.
        process: id there.
        step: that it works on.
        phase: what it is doing.
        seconds: for which it had been doing that when it wrote.
        written: seconds since the epoch.
    """

    rank: int
    host: str
    process: int
    step: int
    phase: str
    seconds: float
    written: float

    @property
    def progress(self) -> tuple[int, int, int, int]:
        """How far it is; passes compare by the number of their micro-batch first."""
        name, number = split_phase(self.phase)
        place = place_in_step(name)
        return self.step, place_in_step("forward pass") if number else place, number, place

    def describe(self, now: float) -> str:
        """Write it on a line."""
        doing = f"step {self.step}, {self.phase}, for {self.seconds + now - self.written:.0f} s"
        return f"rank {self.rank} ({self.host}, process {self.process}): {doing}"


class HeartbeatFolder:
    """The files of a run's ranks.

    Args:
        path: a folder that all ranks see.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, heartbeat: Heartbeat) -> None:
        """Leave word; a disk that cannot be written to is no reason to end a run.

        Raises:
            OSError: it cannot be written.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._file(heartbeat.rank)
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(heartbeat)), encoding="utf-8")
        draft.replace(file)

    def read(self, world_size: int) -> list[Heartbeat | None]:
        """Return the last word of each rank, None where it left none."""
        return [self._read(rank) for rank in range(world_size)]

    def remove(self, rank: int) -> None:
        """Take a rank's word back."""
        self._file(rank).unlink(missing_ok=True)

    def _file(self, rank: int) -> Path:
        return self._path / f"heartbeat_rank_{rank}.json"

    def _read(self, rank: int) -> Heartbeat | None:
        try:
            return Heartbeat(**json.loads(self._file(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def who_waits(heartbeats: Sequence[Heartbeat | None], now: float, silence: float) -> str:
    """Say which rank the others wait for.

    Args:
        heartbeats: of all ranks.
        now: seconds since the epoch.
        silence: seconds without a word after which a rank counts as lost.
    """
    lost = [rank for rank, beat in enumerate(heartbeats) if beat is None or now - beat.written > silence]
    if lost:
        return f"{_ranks(lost)} left no word lately: a process has ended or hangs as a whole, or its machine is away."
    present = [beat for beat in heartbeats if beat is not None]
    behind = min(beat.progress for beat in present)
    last = [beat for beat in present if beat.progress == behind]
    if len(present) == 1:
        return f"It does not get on with: {present[0].phase}."
    if len(last) == len(present):
        return (
            f"All ranks are at the same point ({last[0].phase}), so they wait for what they do together: the network "
            "between them, the file system, or the rollout engine."
        )
    others = [beat.rank for beat in present if beat not in last]
    verb = "wait" if len(others) > 1 else "waits"
    return f"{_ranks(others)} {verb} for {_ranks([beat.rank for beat in last])}: {last[0].phase}."


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {shown}"
