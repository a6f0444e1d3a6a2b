"""Who waits for whom, and a clock that notices a standstill by itself."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surogate.callbacks.heartbeats import Heartbeat, HeartbeatFolder, who_waits
from surogate.callbacks.watchdog import POLLS, Watchdog
from surogate.modes.activity import Activity

NOW = 1000.0


def beat(rank: int, step: int, phase: str, written: float = NOW) -> Heartbeat:
    return Heartbeat(rank=rank, host="node", process=7, step=step, phase=phase, seconds=60.0, written=written)


@pytest.mark.parametrize(
    ("doing", "sentence"),
    [
        (
            [
                (9, "waiting for the other ranks' token counts"),
                (9, "fetching the next batch"),
                (9, "updating the weights"),
            ],
            "ranks 0, 2 wait for rank 1: fetching the next batch.",
        ),
        (
            [(9, "forward pass of micro-batch 10 of 16"), (9, "backward pass of micro-batch 9 of 16")],
            "rank 0 waits for rank 1: backward pass of micro-batch 9 of 16.",
        ),
        (
            [(9, "backward pass of micro-batch 2 of 4"), (9, "forward pass of micro-batch 2 of 4")],
            "rank 0 waits for rank 1: forward pass",
        ),
        (
            [(10, "fetching the next batch"), (9, "saving a checkpoint")],
            "rank 0 waits for rank 1: saving a checkpoint.",
        ),
        (
            [(9, "forward pass of micro-batch 4 of 4")] * 2,
            "All ranks are at the same point (forward pass of micro-batch 4 of 4)",
        ),
        ([(9, "fetching the next batch")], "It does not get on with: fetching the next batch."),
    ],
)
def test_the_others_wait_for_who_is_furthest_behind(doing: list[tuple[int, str]], sentence: str) -> None:
    beats = [beat(rank, step, phase) for rank, (step, phase) in enumerate(doing)]
    assert who_waits(beats, NOW, silence=5).startswith(sentence)


def test_a_rank_that_leaves_no_word_is_named_before_any_other() -> None:
    beats = [beat(0, 9, "fetching the next batch"), beat(1, 9, "updating the weights", written=NOW - 60), None]
    assert who_waits(beats, NOW, silence=5).startswith("ranks 1, 2 left no word lately")


def test_a_heartbeat_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = HeartbeatFolder(tmp_path / "health")
    folder.write(beat(1, 9, "saving a checkpoint"))
    assert folder.read(2) == [None, beat(1, 9, "saving a checkpoint")]
    assert beat(1, 9, "saving").describe(NOW + 5) == "rank 1 (node, process 7): step 9, saving, for 65 s"
    folder.remove(1)
    assert folder.read(2) == [None, None]


@pytest.fixture
def watched(tmp_path: Path) -> Any:
    module: Any = SimpleNamespace(activity=Activity())
    trainer: Any = SimpleNamespace(global_step=4, global_rank=0, world_size=1)
    watchdog = Watchdog(str(tmp_path), stall_seconds=0.2)
    watchdog.on_fit_start(trainer, module)
    yield module.activity
    watchdog.teardown(trainer, module, "fit")


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2 / POLLS)


def test_a_standstill_is_reported_once_with_the_stack_of_the_main_thread(
    watched: Activity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    watched.now("fetching the next batch", 5)
    until(lambda: "Nothing has moved" in caplog.text)
    assert "at step 5. It does not get on with: fetching the next batch." in caplog.text
    assert "test_watchdog.py" in (tmp_path / "health/stacks_rank_0.txt").read_text()
    watched.now("forward pass of micro-batch 1 of 1")
    until(lambda: "Rank 0 goes on." in caplog.text)
    assert caplog.text.partition("goes on")[0].count("Nothing has moved") == 1


def test_a_rank_that_stands_still_for_too_long_ends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    module: Any = SimpleNamespace(activity=Activity())
    trainer: Any = SimpleNamespace(global_step=0, global_rank=0, world_size=1)
    watchdog = Watchdog(str(tmp_path), stall_seconds=0.05, abort_seconds=0.2)
    watchdog.on_fit_start(trainer, module)
    until(lambda: codes)
    watchdog.teardown(trainer, module, "fit")
    assert codes[0] == 8
    assert caplog.text.index("Nothing has moved") < caplog.text.index("rank 0 ends itself")
