"""A run that is killed at random moments, or whose disk is full, ends bit for bit like one that was left alone.

`make soak` does the same with 50 kills (benchmarks/kill_soak.py).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from support.kills import (
    DEADLINE_SECONDS,
    Pace,
    Subject,
    check_nothing_is_half_written,
    check_same_end,
    kill_again_and_again,
    newest_step,
    printed,
    run_to_the_end,
    run_undisturbed,
    save_material,
    started,
    subject,
)
from support.small_disk import small_disk

from surogate.errors import CheckpointError

NUM_STEPS, NUM_KILLS = 200, 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each start has a deadline of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    save_material(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[Subject, Pace]:
    whole = subject(folder, "whole", NUM_STEPS)
    return whole, run_undisturbed(whole)


def test_five_kills_leave_nothing_half_written_and_change_no_bit(
    folder: Path, undisturbed: tuple[Subject, Pace]
) -> None:
    whole, pace = undisturbed
    killed = subject(folder, "killed", NUM_STEPS)
    deaths = list(kill_again_and_again(killed, NUM_KILLS, pace, random.Random(time.time_ns())))
    assert len(deaths) == NUM_KILLS
    run_to_the_end(killed)
    check_same_end(killed, whole)


def test_a_disk_that_fills_up_again_and_again_costs_no_checkpoint_and_no_bit(
    folder: Path, tmp_path: Path, undisturbed: tuple[Subject, Pace]
) -> None:
    whole, _ = undisturbed
    with small_disk(tmp_path / "disk", mebibytes=24) as disk:
        run = subject(folder, "full", NUM_STEPS, parent=disk.path)
        for spare_kib in (40, 0):  # room for a part of a checkpoint, and none at all
            kept = newest_step(run.output)
            with started(run, disk.limit()) as process:
                while disk.is_mounted and newest_step(run.output) < kept + 10 and process.poll() is None:
                    time.sleep(0.005)
                disk.fill(spare_kib * 1024)
                assert process.wait(timeout=DEADLINE_SECONDS) == CheckpointError.exit_code, printed(run)
            assert "error: " in printed(run) and "Traceback" not in printed(run), printed(run)
            check_nothing_is_half_written(run.output)
            assert newest_step(run.output) >= kept
            disk.make_room()
        run_to_the_end(run)
        check_same_end(run, whole)
