"""How runs end: by a signal, by the death of their engine, and what is left of their processes, ports and memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.descendants import Family, command_line, descendants
from support.tiny_grpo import NUM_PROMPTS, command, records, trained_examples, write_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

START_SECONDS = 200
END_SECONDS = 30
STEP_SECONDS = 60
"""A signal lets a step end first."""
MAX_STEPS = 12
"""Four prompts a step: all of them, once."""


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a run that generates one step ahead, and samples most of the time."""
    ahead = {"max_async_level": 1}
    orch = {**ahead, "max_steps": MAX_STEPS, "seq_len": 96, "sampling": {"max_tokens": 80}}
    files = write_files(folder, train={**ahead, "save_steps": 1}, orch=orch)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command("grpo", *files, *options), stdout=log, stderr=log)


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many steps are done."""
    wait_until(lambda: len(list((folder / "run/rollouts").glob("step_*.jsonl"))) >= count, folder, process)


def wait_until(is_so: Callable[[], object], folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
        time.sleep(0.02)


def servers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The launched servers, not the processes that they start."""
    return [pid for pid in descendants(process.pid) if "surogate.rl.generators.vllm_process" in command_line(pid)]


def test_interrupted_runs_leave_nothing_behind(tmp_path: Path):
    options: dict[signal.Signals, list[str]] = {signal.SIGINT: [], signal.SIGTERM: ["--infer.own_process", "true"]}
    processes = {number: start(tmp_path / number.name, *options[number]) for number in options}
    try:
        for number, process in processes.items():
            wait_for_steps(tmp_path / number.name, 1, process)
            family = Family.of(process.pid)
            assert len(family.pids) > 1  # a process for the reward
            process.send_signal(number)
            assert process.wait(STEP_SECONDS) == 128 + number
            assert family.left(END_SECONDS) == []
            log = (tmp_path / number.name / "log").read_text()
            assert log.splitlines()[-1] == f"stopped by {number.name}" and "Stopped after step" in log
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_a_run_outlives_its_server_and_a_server_never_its_run(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--infer.own_process", "true", "--infer.port", str(port))

    process = start(tmp_path, *options)
    try:
        wait_for_steps(tmp_path, 1, process)
        (server,) = servers_of(process)
        of_server = Family.of(server)
        os.kill(server, signal.SIGKILL)
        assert of_server.left(END_SECONDS) == []
        num_done = len(list((tmp_path / "run/rollouts").iterdir()))
        wait_for_steps(tmp_path, num_done + 2, process)  # more than what was sampled ahead
        of_run = Family.of(process.pid)
        assert servers_of(process) not in ([], [server])
    finally:
        process.kill()
        process.wait()
    assert of_run.left(END_SECONDS) == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))

    process = start(tmp_path, *options)
    try:
        assert process.wait(START_SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        process.kill()
        process.wait()
    trained = trained_examples(tmp_path / "run")
    assert len(trained) == len(set(trained)) == NUM_PROMPTS == 4 * MAX_STEPS
    assert [step["step"] for step in records(tmp_path / "run")] == list(range(1, MAX_STEPS + 1))
