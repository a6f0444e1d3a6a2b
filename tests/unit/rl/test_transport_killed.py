"""An orchestrator in a process of its own, killed by SIGKILL while it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.folder_server import SIZE

from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.transport import FolderFeed

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def start(tmp_path):
    """Start orchestrators as processes; those that still run are ended."""
    started = []

    def start():
        paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))
        program = REPOSITORY / "tests" / "support" / "folder_server.py"
        command = [sys.executable, str(program), str(tmp_path), "1"]
        started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def weights(version):
    return WeightUpdate(version=version, tensors=lambda: iter([("w", torch.full((3,), float(version)))]))


@pytest.mark.slow
def test_prompts_are_trained_once_although_the_orchestrator_is_killed_twice(tmp_path, start):
    processes = [start()]
    feed = FolderFeed(tmp_path, timeout=120)
    feed.start()
    feed.publish(weights(0))

    def replace_orchestrator():
        processes[-1].kill()
        processes[-1].wait()
        processes.append(start())

    trained = []
    for step in range(SIZE // 2):
        if step == 3:  # between two calls
            replace_orchestrator()
        if step == 7:  # while this call waits, since a stopped process does not answer
            processes[-1].send_signal(signal.SIGSTOP)
            threading.Timer(0.5, replace_orchestrator).start()
        trained += [group.example.id for group in feed.next_batch(step).groups]
        feed.publish(weights(step + 1))
    feed.close()
    assert Counter(trained) == {f"a/{i}": 1 for i in range(SIZE)}
    assert [process.wait(10) for process in processes] == [-signal.SIGKILL, -signal.SIGKILL, 0]
