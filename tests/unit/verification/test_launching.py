"""What becomes of a verification's run when the verification is told to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from surogate.cli import verify
from surogate.errors import Stopped
from surogate.verification.launching import run_group, stops_on_signals

WITH_A_RANK = """
import os, signal, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
{prelude}
print(os.getpid(), rank.pid, flush=True)
time.sleep(60)
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def signal_once_it_runs(output: Path, number: int) -> threading.Thread:
    def send() -> None:
        while not output.read_text().endswith("\n"):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("prelude", "number"), [("", signal.SIGTERM), ("", signal.SIGINT), ("", signal.SIGHUP), (DEAF, signal.SIGTERM)]
)
def test_a_signal_ends_the_run_with_its_ranks_and_then_the_verification(
    tmp_path: Path, prelude: str, number: signal.Signals
) -> None:
    output = tmp_path / "run.log"
    before = signal.getsignal(number)
    with output.open("w") as file:
        thread = signal_once_it_runs(output, number)
        with pytest.raises(Stopped) as stopped:
            run_group([sys.executable, "-c", WITH_A_RANK.format(prelude=prelude)], file, seconds_to_end=0.3)
        thread.join()
    assert stopped.value.exit_code == 128 + number
    pids = [int(pid) for pid in output.read_text().splitlines()[0].split()]
    for _ in range(100):  # the rank is nobody's child any more, and is cleared away in its time
        if not any(map(is_running, pids)):
            break
        time.sleep(0.02)
    assert len(pids) == 2 and not any(map(is_running, pids))
    assert signal.getsignal(number) == before


def test_a_run_that_nothing_disturbs_gives_its_exit_code(tmp_path: Path) -> None:
    with (tmp_path / "run.log").open("w") as file:
        assert run_group([sys.executable, "-c", "print('there'); raise SystemExit(3)"], file) == 3
    assert (tmp_path / "run.log").read_text() == "there\n"


def test_a_signal_between_two_runs_removes_the_folder(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(Stopped) as stopped,
        stops_on_signals(),
        verify._folder_beside(tmp_path / "out", keep=False) as folder,
    ):
        assert folder.is_dir()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before
